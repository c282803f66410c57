"""One figure of a job: the modes of one block, and what the job's answers said over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from koopcast_server.plots.finding import FoundBlock
from koopcast_server.plots.history import draw_errors, draw_radius
from koopcast_server.plots.modes import plotted_modes
from koopcast_server.plots.spectrum import draw_circle, draw_energies, draw_times

__all__ = ["draw_job", "write_plot"]

_INCHES: Final = (13.0, 8.4)
_DOTS_PER_INCH: Final = 130


def draw_job(found: FoundBlock) -> Figure:
    """A figure of five panels: eigenvalues, energies, time constants; spectral radius and errors over time."""
    status, block = found.status, found.block
    figure = Figure(figsize=_INCHES, layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1.15, 1.0))
    circle, energies, times = (figure.add_subplot(grid[0, first : first + 2]) for first in (0, 2, 4))
    radius, errors = (figure.add_subplot(grid[1, first : first + 3]) for first in (0, 3))
    modes = plotted_modes(block.modes)
    draw_circle(circle, modes)
    draw_energies(energies, modes)
    draw_times(times, modes)
    draw_radius(radius, status.history)
    draw_errors(errors, status.history)
    if not modes:
        for axes in (circle, energies, times):
            _say(axes, "no modes:\nthe window shows no motion" if block.rank == 0 else "no finite modes")
    for axes in (radius, errors):
        axes.set_xlabel("trainer step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if not status.history:
            _say(axes, "no answers yet")
    figure.suptitle(_title(found), x=0.01, ha="left", fontsize=12)
    return figure


def write_plot(found: FoundBlock, path: Path) -> None:
    """Writes the figure of `draw_job`; the path's suffix says in which format.

    Raises:
        ValueError: a suffix that matplotlib does not know.
        OSError: the file cannot be written.
    """
    draw_job(found).savefig(path, dpi=_DOTS_PER_INCH)


def _title(found: FoundBlock) -> str:
    status, block = found.status, found.block
    step = "no step" if status.step is None else f"step {status.step:,}"
    of = f" (number {found.number} of {found.total:,})" if found.total > 1 else ""
    tested = _number(block.backtest_error), _number(block.backtest_error_linear)
    return (
        f"{status.name}, {step}: block {block.name}{of}, {block.parameters:,} parameters, rank {block.rank}\n"
        f"back-test {tested[0]} (linear extrapolation {tested[1]}), predicted error "
        f"{_number(block.predicted_error)}, {'moves' if block.moved else 'declines'}"
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "none"


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
