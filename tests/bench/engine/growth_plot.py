"""The figure of `growth`: three panels, log-log, with the slopes that are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from engine.growth import BOUNDS, Sweep

__all__ = ["draw"]

_NAMES = {"elements": "parameters n", "window": "snapshots m", "blocks": "blocks"}


def draw(sweeps: Sequence[Sweep], path: Path) -> None:
    """Times of a push and of an answer, and a dashed line of the allowed slope through the last point of each."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        for axes, sweep in zip(figure.subplots(1, len(sweeps)), sweeps, strict=True):
            _panel(axes, sweep)
        figure.axes[0].set_ylabel("seconds")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _panel(axes: Axes, sweep: Sweep) -> None:
    power = BOUNDS[sweep.axis]
    at = [float(point.at) for point in sweep.points]
    lines = {
        "push": [point.push for point in sweep.points],
        "answer": [point.answer for point in sweep.points],
    }
    for number, (name, times) in enumerate(lines.items()):
        axes.loglog(at, times, marker="o", markersize=3, color=f"C{number}", label=name)
    start, end = at[0], at[-1]
    for number, (name, times) in enumerate(lines.items()):
        allowed = f"power {power:.0f}" if name == "answer" else None
        ends = (times[-1] * (start / end) ** power, times[-1])
        axes.loglog((start, end), ends, color=f"C{number}", linewidth=0.8, linestyle="--", label=allowed)
    least, most = min(map(min, lines.values())), max(map(max, lines.values()))
    axes.set(title=sweep.fixed, xlabel=_NAMES[sweep.axis])
    axes.set_ylim(bottom=least / 3, top=20 * most)
    if sweep.axis == "window":  # less than two decades: the points themselves
        axes.set_xticks(at, labels=[f"{value:.0f}" for value in at])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
