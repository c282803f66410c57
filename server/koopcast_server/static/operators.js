// The blocks of a job, and the modes of the one that is picked.

import { drawCircle } from "./circle.js";
import { byId, element, number, pickRows } from "./dom.js";
import * as format from "./format.js";

let picked = null; // name of the picked block; null: the first

export function forgetBlock() {
  picked = null;
}

export function showOperators(job) {
  const any = job.blocks.length > 0;
  byId("operators").hidden = !any;
  byId("no-blocks").hidden = any;
  byId("no-blocks").textContent = `No operator yet: the window holds ${format.held(job)} snapshots.`;
  if (!any) return;
  const current = job.blocks.find(({ name }) => name === picked) ?? job.blocks[0];
  const pickBlock = (name) => {
    picked = name;
    showOperators(job);
  };
  pickRows(byId("block-rows"), job.blocks, current.name, pickBlock, (one) => [
    number(format.short(one.parameters)),
    number(format.count(one.rank)),
    number(format.measure(one.spectral_radius), one.spectral_radius > 1 ? "warn" : ""),
    number(format.measure(one.residual)),
    number(format.measure(one.backtest_error)),
    number(format.measure(one.backtest_error_linear)),
    number(format.measure(one.predicted_error)),
    element("td", { className: one.moved ? "dot good" : "dot soft", textContent: one.moved ? "yes" : "declines" }),
  ]);
  const more = job.blocks_total - job.blocks.length;
  byId("blocks-hint").textContent =
    "Back-test and linear extrapolation: error on held-out snapshots; staying in place scores 1. Predicted: the " +
    "error to expect as far ahead as the job is trusted." +
    (more > 0 ? ` ${format.count(more)} more blocks are not shown.` : "");
  showModes(current, job.stride);
}

function showModes(block, stride) {
  byId("circle-title").textContent = `Eigenvalues of ${block.name}`;
  byId("modes-title").textContent = `Modes of ${block.name}`;
  const modes = block.modes.map(({ eigenvalue, ...rest }) => ({ ...eigenvalue, ...rest }));
  drawCircle(byId("circle"), modes.length ? modes : block.eigenvalues);
  byId("mode-rows").replaceChildren(...format.pairs(modes).map((mode) => modeRow(mode, stride)));
  byId("modes-hint").textContent =
    block.rank === 0 ? "No modes: the window shows no motion of this block." : modesText(block, stride);
}

function modesText(block, stride) {
  return (
    `Eigenvalues per stride (${format.plural(stride, "step")}), before stabilisation; ± stands for a pair. Time ` +
    `constant: steps to shrink by a factor e. Residual near 0: a mode of the training, near 1: one of the fit ` +
    `only. ${settingsText(block)}`
  );
}

function settingsText({ rank, ridge, debias, jump_scale: scale }) {
  const noise = debias === "none" ? "noise not corrected" : `noise corrected by ${debias}`;
  const shortened = scale !== null && scale < 1 ? `, displacement shortened to ${format.percent(scale)}` : "";
  return `In use: rank ${rank}, ridge ${format.measure(ridge)}, ${noise}${shortened}.`;
}

function modeRow(mode, stride) {
  const modulus = mode.real === null ? null : Math.hypot(mode.real, mode.imaginary);
  const turns = mode.imaginary ? Math.abs(Math.atan2(mode.imaginary, mode.real)) / (2 * Math.PI) : 0;
  return element(
    "tr",
    {},
    number(format.complex(mode)),
    number(modulus === null ? "–" : modulus.toFixed(4), modulus > 1 ? "warn" : ""),
    energyCell(mode.energy),
    timeCell(mode.time_constant_steps, modulus),
    number(turns ? format.short(Math.round(stride / turns)) : "–"),
    number(format.measure(mode.residual)),
  );
}

function energyCell(energy) {
  if (energy === null) return number("–");
  const bar = element("progress", { max: 1, value: energy });
  bar.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  return element("td", { className: "number bar" }, bar, element("span", { textContent: format.percent(energy) }));
}

function timeCell(steps, modulus) {
  if (steps === null) return number(modulus === null ? "–" : "∞"); // on the unit circle
  return steps < 0 ? number(`grows in ${format.rounded(-steps)}`, "warn") : number(format.rounded(steps));
}
