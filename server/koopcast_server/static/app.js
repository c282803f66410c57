// Polls the service and shows its jobs. It only reads; the address bar's #name says which job is picked.

import { byId, describe, element, number, pickRows } from "./dom.js";
import * as format from "./format.js";
import { showHistory } from "./history.js";
import { forgetBlock, showOperators } from "./operators.js";

const POLL_MILLISECONDS = 2000;
const TIMEOUT_MILLISECONDS = 10000;
const MOST_PAGES = 10;

let shown = null; // name of the job that is shown

const pickedJob = () => {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
};

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MILLISECONDS), cache: "no-store" });
  const body = await response.json();
  return { status: response.status, body };
}

async function allJobs() {
  const jobs = [];
  let token = "";
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const { status, body } = await ask(`/v1/jobs?page_token=${encodeURIComponent(token)}`);
    if (status !== 200) throw new Error(body.detail);
    jobs.push(...body.jobs);
    token = body.next_page_token;
    if (!token) break;
  }
  return jobs;
}

function showService({ status, body }) {
  const ready = status === 200;
  describe(byId("service"), [
    ["Service", ready ? "ready" : (body.reason ?? "unavailable").toLowerCase(), `dot ${ready ? "good" : "warn"}`],
    ["Device", body.device],
    ["Memory", `${format.bytes(body.memory_bytes)} of ${format.bytes(body.memory_limit_bytes)}`],
    ["Version", body.version],
  ]);
}

function windowCell(job) {
  const full = job.operator.window;
  if (full === "segment") return element("td", { textContent: `${format.count(job.snapshots_held)}, whole segment` });
  const bar = element("progress", { max: full, value: job.snapshots_held });
  bar.setAttribute("aria-label", "Snapshots in the window");
  return element("td", {}, bar, `${job.snapshots_held} / ${full}`);
}

const reported = (job) => job.jumps_accepted + job.jumps_rejected;

const jumpsText = (job) =>
  reported(job) ? `${format.count(job.jumps_accepted)} of ${format.count(reported(job))}` : "–";

function showJobs(jobs) {
  byId("empty").hidden = jobs.length > 0;
  byId("jobs").hidden = jobs.length === 0;
  byId("jobs-title").textContent = `Jobs (${format.count(jobs.length)})`;
  pickRows(byId("job-rows"), jobs, pickedJob(), pick, (job) => [
    element("td", {
      className: job.lease.held ? "dot good" : "dot soft",
      textContent: job.lease.held ? "connected" : "none",
      title: job.lease.holder,
    }),
    number(format.count(job.segment)),
    number(format.count(job.step)),
    windowCell(job),
    number(format.short(job.parameters)),
    number(format.bytes(job.memory_bytes)),
    number(format.share(job.predictability)),
    number(jumpsText(job)),
    number(format.seconds(job.last_prediction_seconds)),
  ]);
}

const RULES = { backtest: "back-tested", "gavish-donoho": "by Gavish & Donoho" };

// What differs from the defaults is told; so the text stays short.
function operatorText(operator) {
  const { observable, partition, quasi_node_inputs: inputs, rank, ridge, debias, delays, forgetting } = operator;
  const parts = [observable, `by ${partition.replace("_", "-")}${inputs ? ` of ${format.count(inputs)} inputs` : ""}`];
  parts.push(rank === "energy" ? `energy ${operator.energy}` : `rank ${RULES[rank] ?? rank}`);
  parts.push(`ridge ${RULES[ridge] ?? format.measure(ridge)}`);
  if (debias !== "none") parts.push(`debiasing ${RULES[debias] ?? `by ${debias}`}`);
  if (delays) parts.push(format.plural(delays, "delay"));
  if (forgetting < 1) parts.push(`forgetting ${forgetting}`);
  if (operator.max_jump !== null) parts.push(`jumps up to ${operator.max_jump} × the path`);
  if (operator.mask_tolerance !== null) parts.push(`mask of tolerance ${operator.mask_tolerance}`);
  if (operator.always_move) parts.push("every block moves");
  return [...parts, operator.stabilize ? "stabilised" : "not stabilised"].join(", ");
}

function trustText({ summary }) {
  if (summary === null) return "–";
  const untrusted = summary.untrusted ? `, ${format.count(summary.untrusted)} untrusted` : "";
  return `${format.count(summary.moved)} of ${format.count(summary.blocks)}${untrusted}`;
}

function predictabilityText({ predictability }) {
  if (predictability === null) return "–";
  return `${format.share(predictability)} of the way was foretold: near 1 jumps pay, near 0 noise moves the weights`;
}

function leaseText({ held, expires_in_seconds: left, holder }) {
  return held ? `${holder || "connected"}, for ${Math.ceil(left)} s more` : "nobody";
}

function showFacts(job) {
  const { count, plural, bytes, seconds, ago } = format;
  const held = `${format.held(job)} held, ${count(job.snapshots_accepted)} accepted`;
  const answered = `${count(job.predictions)}, last in ${seconds(job.last_prediction_seconds)}`;
  const outcomes = `${count(job.jumps_accepted)} kept, ${count(job.jumps_rejected)} undone`;
  describe(byId("facts"), [
    ["Snapshots", held],
    ["Every", plural(job.stride, "step")],
    ["Last snapshot", ago(job.pushed)],
    ["Opened", ago(job.created)],
    ["Snapshot", `${plural(job.parameters, "parameter")} in ${plural(job.tensors, "tensor")}`],
    ["Window and answers in", `${job.window_dtype} and ${job.wire_dtype}`],
    ["Received / sent", `${bytes(job.bytes_received)} / ${bytes(job.bytes_sent)}`],
    ["Trusted to look ahead", job.trusted_horizon_steps ? `${format.rounded(job.trusted_horizon_steps)} steps` : "–"],
    ["Predicted error so far ahead", format.measure(job.summary?.predicted_error ?? null)],
    ["Blocks that would move", trustText(job)],
    ["Predictions", job.predictions ? answered : "none"],
    ["Jumps", reported(job) ? outcomes : "none"],
    ["Writer", leaseText(job.lease)],
    ["Predictability", predictabilityText(job)],
    ["Operator", operatorText(job.operator)],
  ]);
}

async function showJob(name) {
  byId("job").hidden = name === null;
  if (name === null) {
    shown = null;
    return;
  }
  const { status, body } = await ask(`/v1/jobs/${encodeURIComponent(name)}`);
  if (name !== pickedJob()) return;
  byId("job-title").textContent = name;
  const found = status === 200;
  byId("facts").hidden = !found;
  if (found) {
    showFacts(body);
    showOperators(body);
    showHistory(body);
  } else {
    byId("operators").hidden = true;
    byId("history").hidden = true;
    byId("no-blocks").hidden = false;
    byId("no-blocks").textContent = body.detail;
  }
  shown = name;
}

function pick(name) {
  location.hash = name === pickedJob() ? "" : encodeURIComponent(name);
}

function say(text) {
  const notice = byId("notice");
  if (notice.textContent !== text) notice.textContent = text; // unchanged text is not read out again
  notice.hidden = text === "";
}

async function refresh() {
  try {
    showService(await ask("/healthz"));
    showJobs(await allJobs());
    await showJob(pickedJob());
    say("");
    byId("updated").textContent = `updated ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    say(`The service does not answer; trying again. (${error.message})`);
  }
}

let timer = 0;
let running = false;

async function loop() {
  clearTimeout(timer);
  if (running) return; // the running one schedules the next
  running = true;
  if (!document.hidden) await refresh();
  running = false;
  timer = setTimeout(loop, POLL_MILLISECONDS);
}

addEventListener("hashchange", async () => {
  const left = shown;
  forgetBlock();
  await showJob(pickedJob()).catch((error) => say(error.message));
  await loop();
  if (shown !== null) byId("job-title").focus();
  else [...byId("job-rows").querySelectorAll("button")].find((button) => button.dataset.key === left)?.focus();
});
document.addEventListener("visibilitychange", loop);
byId("close").addEventListener("click", () => pick(pickedJob()));
byId("host").textContent = location.hostname;
loop();
