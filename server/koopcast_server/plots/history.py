"""Panels of what a job's answers said over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from koopcast.status import HistoryPoint
from koopcast_server.plots.style import BLUE, GREY, PURPLE, VERMILION, begin, clip_positive

__all__ = ["draw_errors", "draw_radius"]

_MOST_DOTS = 60
_STEEP = 10.0
"""Radii beyond it are drawn on a logarithmic axis."""


def draw_radius(axes: Axes, history: Sequence[HistoryPoint]) -> None:
    """Spectral radius of all blocks over trainer steps; 1 is where growth begins."""
    begin(axes, "Spectral radius over time", "", "largest |eigenvalue|, per stride")
    if not history:
        return
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle=":", label="1: neither grows nor decays")
    radii = [point.spectral_radius for point in history]
    if any(math.isfinite(radius) and radius > _STEEP for radius in radii):
        axes.set_yscale("log")
    _line(axes, history, radii, BLUE, "-", "spectral radius")
    still = [point for point in history if not point.moved]
    if still:
        steps, values = [p.step for p in still], [clip_positive(p.spectral_radius) for p in still]
        axes.plot(steps, values, "o", color=BLUE, mfc="white", zorder=3, label="nothing moved")
    axes.legend(frameon=False, fontsize=8.5)


def draw_errors(axes: Axes, history: Sequence[HistoryPoint]) -> None:
    """Back-test error, linear extrapolation's, and the predicted error, over trainer steps; 1 is staying in place."""
    begin(axes, "Errors over time", "", "|predicted − true| / |true|")
    if not history:
        return
    axes.set_yscale("log")
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle=":", label="1: staying in place")
    linear = [point.backtest_error_linear for point in history]
    _line(axes, history, linear, VERMILION, "--", "linear extrapolation, back-test")
    predicted = [point.predicted_error for point in history]
    _line(axes, history, predicted, PURPLE, ":", "predicted for the horizon asked")
    _line(axes, history, [point.backtest_error for point in history], BLUE, "-", "back-test")
    _whole_decades(axes)
    axes.legend(frameon=False, fontsize=8.5)


def _whole_decades(axes: Axes) -> None:
    """Widens a logarithmic axis to powers of ten, so that it has ticks however little the values differ."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    lowest, highest = math.floor(low), math.ceil(high)
    axes.set_ylim(10.0**lowest, 10.0 ** max(highest, lowest + 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(
    axes: Axes, history: Sequence[HistoryPoint], values: Sequence[float], colour: str, style: str, label: str
) -> None:
    """A line with gaps where a value is not finite."""
    shown = [clip_positive(value) if math.isfinite(value) else math.nan for value in values]
    marker = "o" if len(history) <= _MOST_DOTS else ""
    steps = [point.step for point in history]
    axes.plot(
        steps, shown, color=colour, linestyle=style, linewidth=1.6, marker=marker, markersize=4, label=label
    )
