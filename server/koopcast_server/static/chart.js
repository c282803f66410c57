// A small line chart over trainer steps: axes, ticks, a dashed reference, a line with dots for each series.

import { shape } from "./dom.js";
import { power, short } from "./format.js";

const WIDTH = 520; // of the view box
const HEIGHT = 230;
const LEFT = 54;
const RIGHT = 20;
const TOP = 12;
const BOTTOM = 42;
export const MOST_DOTS = 40; // beyond it the line and its last dot are enough
const SMALLEST = 1e-12; // what a logarithmic axis shows of 0

// `series`: [{ className, label, values }]; a value is null where it is undefined, and the line has a gap there.
// `hollow`: whether the dots of a step are drawn empty.
export function drawChart(svg, { steps, hollow, series, reference, logarithmic }) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const known = series.flatMap(({ values }) => values).filter((value) => value !== null);
  const vertical = (logarithmic ? decades : evenly)([...known, reference]);
  const horizontal = exactly(steps);
  const x = (step) => LEFT + horizontal.at(step) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - BOTTOM - TOP);
  svg.replaceChildren(
    ...vertical.ticks.flatMap(({ value, text }) => [
      shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      shape("text", { x: LEFT - 7, y: y(value) + 4, class: "tick end" }, text),
    ]),
    ...horizontal.ticks.map(({ value }) =>
      shape("text", { x: x(value), y: HEIGHT - BOTTOM + 17, class: "tick middle" }, short(value)),
    ),
    shape("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, class: "tick middle" }, "trainer step"),
    shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(reference), y2: y(reference), class: "reference" }),
    ...series.flatMap((one) => drawSeries(one, steps, hollow, x, y)),
  );
}

function drawSeries({ className, label, values }, steps, hollow, x, y) {
  const points = steps.map((step, index) => ({ step, value: values[index], hollow: hollow[index] }));
  const line = points
    .map(({ step, value }, index) => {
      if (value === null) return "";
      const begins = index === 0 || points[index - 1].value === null;
      return `${begins ? "M" : "L"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    })
    .join("");
  const defined = points.filter(({ value }) => value !== null);
  const dots = defined.length > MOST_DOTS ? defined.slice(-1) : defined;
  return [
    shape("path", { d: line, class: `line ${className}` }),
    ...dots.map((point) => {
      const empty = point.hollow ? "hollow" : "";
      const dot = shape("circle", { cx: x(point.step), cy: y(point.value), r: 3, class: `dot ${className} ${empty}` });
      dot.append(shape("title", {}, `${label}, step ${point.step}: ${point.value.toPrecision(4)}`));
      return dot;
    }),
  ];
}

// A round number of which about four go into the span.
function roundStep(span) {
  const rough = span / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  return unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
}

// An axis from the lowest to the highest value, widened to round numbers.
function evenly(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = roundStep(high - low || Math.max(Math.abs(high) / 10, 1e-3));
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => {
    const value = (first + index) * step;
    return { value, text: digits > 6 ? value.toPrecision(6) : value.toFixed(digits) };
  });
  return { ticks, at: (value) => (value / step - first) / (last - first) };
}

// An axis from the lowest to the highest whole number, with round ones marked.
function exactly(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) return { ticks: [{ value: low }], at: () => 0.5 };
  const step = Math.max(1, roundStep(high - low));
  const first = Math.ceil(low / step);
  const ticks = Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => ({
    value: (first + index) * step,
  }));
  return { ticks, at: (value) => (value - low) / (high - low) };
}

function decades(values) {
  const exponents = values.map((value) => Math.log10(Math.max(value, SMALLEST)));
  const low = Math.floor(Math.min(...exponents) + 1e-9);
  const high = Math.max(Math.ceil(Math.max(...exponents) - 1e-9), low + 1);
  const step = Math.ceil((high - low) / 5);
  const ticks = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, index) => {
    const exponent = low + index * step;
    return { value: 10 ** exponent, text: power(exponent) };
  });
  return { ticks, at: (value) => (Math.log10(Math.max(value, SMALLEST)) - low) / (high - low) };
}
