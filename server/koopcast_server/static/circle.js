// The eigenvalues of one block in the unit circle, larger where a mode carries more of the energy.

import { shape } from "./dom.js";
import { complex, percent } from "./format.js";

const HALF = 120; // of the view box
const MARGIN = 10;

export function drawCircle(svg, eigenvalues) {
  const known = eigenvalues.filter(({ real, imaginary }) => real !== null && imaginary !== null);
  const reach = Math.max(1.1, ...known.map(({ real, imaginary }) => Math.max(Math.abs(real), Math.abs(imaginary))));
  const scale = (HALF - MARGIN) / reach;
  svg.replaceChildren(
    shape("circle", { r: scale, class: "disc" }),
    shape("line", { x1: -HALF, x2: HALF, y1: 0, y2: 0, class: "axis" }),
    shape("line", { y1: -HALF, y2: HALF, x1: 0, x2: 0, class: "axis" }),
    shape("text", { x: 4 - scale, y: 10, class: "tick" }, "−1"),
    shape("text", { x: 4, y: 11 - scale, class: "tick" }, "i"),
    ...known.map((value) => mark(value, scale)),
  );
}

function mark(value, scale) {
  const outside = Math.hypot(value.real, value.imaginary) > 1;
  const dot = shape("circle", {
    cx: value.real * scale,
    cy: -value.imaginary * scale,
    r: 3 + 5 * Math.sqrt(value.energy ?? 0.04),
    class: outside ? "outside" : "inside",
  });
  const energy = value.energy === undefined ? "" : `, ${percent(value.energy)} of the energy`;
  dot.append(shape("title", {}, complex(value) + energy));
  return dot;
}
