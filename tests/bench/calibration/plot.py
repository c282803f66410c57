"""The reliability plot: what came, against what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibration.cases import Array, Outcome
from calibration.tables import CLASSES, pooled

__all__ = ["draw"]

_BINS = 14
"""Of as many cases each."""


def draw(some: Sequence[Outcome], path: Path) -> None:
    """Median error and its quartiles for bins of the expected error, a line for each class of horizons."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.5, 4.6), layout="constrained")
        axes = figure.subplots(1, 2)
        full = [one for one in some if one.kind == "deterministic"]
        batches = [one for one in some if one.kind != "deterministic"]
        _panel(axes[0], full, "deterministic training", (1e-5, 3.0))
        _panel(axes[1], batches, "minibatches, plain and averaged snapshots", (0.2, 2.0))
        axes[0].set_ylabel("true relative error: median, quartiles")
        axes[0].legend(title="strides ahead", loc="upper left")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _panel(axes: Axes, some: Sequence[Outcome], title: str, shown: tuple[float, float]) -> None:
    axes.loglog(shown, shown, color="0.5", linewidth=1, linestyle="--")
    for number, (name, horizons) in enumerate(CLASSES.items()):
        expected = pooled(some, lambda one: one.predicted, horizons)
        true = pooled(some, lambda one: one.true, horizons)
        centre, low, middle, high = _binned(expected, true)
        axes.plot(centre, middle, marker="o", markersize=3, color=f"C{number}", label=name)
        axes.fill_between(centre, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel="predicted relative error", xlim=shown, ylim=shown)
    axes.grid(alpha=0.3)


def _binned(expected: Array, true: Array) -> tuple[Array, Array, Array, Array]:
    """For each bin the median of what was expected, and the quartiles of what came."""
    rows = [
        (np.median(expected[some]), *np.quantile(true[some], (0.25, 0.5, 0.75)))
        for some in np.array_split(np.argsort(expected, kind="stable"), _BINS)
    ]
    centre, low, middle, high = np.array(rows).T
    return centre, low, middle, high
