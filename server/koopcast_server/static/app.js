// Polls the service and shows its jobs. It only reads; the address bar's #name says which job is picked.

import { drawCircle } from "./circle.js";
import { byId, describe, element, number, pickRows } from "./dom.js";
import * as format from "./format.js";

const POLL_MILLISECONDS = 2000;
const TIMEOUT_MILLISECONDS = 10000;
const MOST_PAGES = 10;

let block = null; // name of the picked block; null: the first
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
    number(jumpsText(job)),
    number(format.seconds(job.last_prediction_seconds)),
  ]);
}

function operatorText({ observable, partition, rank, energy, ridge, stabilize }) {
  const modes = rank === "energy" ? `energy ${energy}` : `rank ${rank}`;
  return `${observable}, by ${partition}, ${modes}, ridge ${ridge}, ${stabilize ? "stabilised" : "not stabilised"}`;
}

function leaseText({ held, expires_in_seconds: left, holder }) {
  return held ? `${holder || "connected"}, for ${Math.ceil(left)} s more` : "nobody";
}

function showFacts(job) {
  const { count, plural, bytes, seconds, ago } = format;
  const held = `${job.snapshots_held} of ${job.operator.window} held, ${count(job.snapshots_accepted)} accepted`;
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
    ["Predictions", job.predictions ? answered : "none"],
    ["Jumps", reported(job) ? outcomes : "none"],
    ["Writer", leaseText(job.lease)],
    ["Operator", operatorText(job.operator)],
  ]);
}

function showBlocks(job) {
  const any = job.blocks.length > 0;
  byId("operators").hidden = !any;
  byId("no-blocks").hidden = any;
  byId("no-blocks").textContent =
    `No operator yet: the window holds ${job.snapshots_held} of ${job.operator.window} snapshots.`;
  if (!any) return;
  const current = job.blocks.find(({ name }) => name === block) ?? job.blocks[0];
  const pickBlock = (name) => {
    block = name;
    showBlocks(job);
  };
  pickRows(byId("block-rows"), job.blocks, current.name, pickBlock, (one) => [
    number(format.short(one.parameters)),
    number(format.count(one.rank)),
    number(format.measure(one.spectral_radius), one.spectral_radius > 1 ? "warn" : ""),
    number(format.measure(one.residual)),
    number(format.measure(one.backtest_error)),
    number(format.measure(one.backtest_error_linear)),
    element("td", { className: one.moved ? "dot good" : "dot soft", textContent: one.moved ? "yes" : "declines" }),
  ]);
  const more = job.blocks_total - job.blocks.length;
  byId("blocks-hint").textContent =
    "Back-test and linear extrapolation: error on held-out snapshots; staying in place scores 1." +
    (more > 0 ? ` ${format.count(more)} more blocks are not shown.` : "");
  showEigenvalues(current, job.stride);
}

function showEigenvalues({ name, eigenvalues }, stride) {
  byId("circle-title").textContent = `Eigenvalues of ${name}`;
  drawCircle(byId("circle"), eigenvalues);
  byId("eigenvalue-rows").replaceChildren(...format.pairs(eigenvalues).map((value) => eigenvalueRow(value, stride)));
}

function eigenvalueRow(value, stride) {
  const modulus = value.real === null ? null : Math.hypot(value.real, value.imaginary);
  const decays = modulus !== null && modulus > 0 && modulus < 1;
  const turns = value.imaginary ? Math.abs(Math.atan2(value.imaginary, value.real)) / (2 * Math.PI) : 0;
  return element(
    "tr",
    {},
    number(format.complex(value)),
    number(modulus === null ? "–" : modulus.toFixed(4), modulus > 1 ? "warn" : ""),
    number(decays ? format.short(Math.round((stride * Math.LN2) / -Math.log(modulus))) : "–"),
    number(turns ? format.short(Math.round(stride / turns)) : "–"),
  );
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
    showBlocks(body);
  } else {
    byId("operators").hidden = true;
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
  block = null;
  await showJob(pickedJob()).catch((error) => say(error.message));
  await loop();
  if (shown !== null) byId("job-title").focus();
  else [...byId("job-rows").querySelectorAll("button")].find((button) => button.dataset.key === left)?.focus();
});
document.addEventListener("visibilitychange", loop);
byId("close").addEventListener("click", () => pick(pickedJob()));
byId("host").textContent = location.hostname;
loop();
