"""What the panels share: colours, told apart by the colour-blind too, frames, and how far axes reach."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes

__all__ = ["BLUE", "GREY", "PURPLE", "VERMILION", "begin", "clip", "clip_positive"]

BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#AA4499"
GREY: Final = "0.45"

_LARGEST: Final = 1e15
"""Values beyond it, or closer to 0 than its inverse, are drawn there: a diverging job must not break its plot."""


def begin(axes: Axes, title: str, across: str, up: str) -> None:
    """Title and labels of a panel, and a quiet grid behind it."""
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def clip(value: float) -> float:
    """`value` within what a linear axis can show; NaN stays."""
    return min(max(value, -_LARGEST), _LARGEST)


def clip_positive(value: float) -> float:
    """`value`, at least 0, within what a logarithmic axis can show; NaN stays."""
    return min(max(value, 1.0 / _LARGEST), _LARGEST)
