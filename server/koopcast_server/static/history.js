// What the job's answers said over time: spectral radius, and back-test errors.

import { drawChart, MOST_DOTS } from "./chart.js";
import { byId } from "./dom.js";
import { count, measure, plural } from "./format.js";

const STEEP = 10; // radii beyond it are drawn on a logarithmic axis

export function showHistory({ history }) {
  byId("history").hidden = history.length === 0;
  if (history.length === 0) return;
  const steps = history.map(({ step }) => step);
  const hollow = history.map(({ moved }) => !moved);
  const take = (name) => history.map((point) => point[name]);
  const radii = take("spectral_radius");
  drawChart(byId("radius-chart"), {
    steps,
    hollow,
    reference: 1,
    logarithmic: radii.some((value) => value > STEEP),
    series: [{ className: "first", label: "spectral radius", values: radii }],
  });
  drawChart(byId("error-chart"), {
    steps,
    hollow,
    reference: 1,
    logarithmic: true,
    series: [
      { className: "second", label: "linear extrapolation", values: take("backtest_error_linear") },
      { className: "third", label: "predicted", values: take("predicted_error") },
      { className: "first", label: "back-test", values: take("backtest_error") },
    ],
  });
  const last = history.at(-1);
  const over = `${plural(history.length, "answer")}, the last at step ${count(last.step)}`;
  byId("radius-hint").textContent =
    `${over}: ${measure(last.spectral_radius)}. Above 1 something grows.` +
    (history.length > MOST_DOTS ? "" : " Hollow: nothing moved.");
  byId("error-hint").textContent =
    `${over}: back-test ${measure(last.backtest_error)}, linear extrapolation ` +
    `${measure(last.backtest_error_linear)}, predicted ${measure(last.predicted_error)} ` +
    `for ${count(last.horizon_steps)} steps ahead. Staying in place scores 1.`;
}
