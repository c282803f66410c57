"""Panels of the modes of one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.ticker import PercentFormatter

from koopcast_server.plots.modes import PlottedMode
from koopcast_server.plots.style import BLUE, GREY, VERMILION, begin, clip, clip_positive

__all__ = ["draw_circle", "draw_energies", "draw_times"]

_MOST_BARS: Final = 24
_REACH: Final = 1.12
"""How far the axes of the unit circle go at least."""


def draw_circle(axes: Axes, modes: Sequence[PlottedMode]) -> None:
    """Eigenvalues in the unit circle, their areas by energy; those outside are drawn hollow."""
    begin(axes, "Eigenvalues, area by energy", "real part", "imaginary part")
    axes.add_patch(Circle((0.0, 0.0), 1.0, facecolor="0.965", edgecolor=GREY, linewidth=1))
    reach = _REACH
    for mode in modes:
        colour = VERMILION if mode.grows else BLUE
        share = _energy(mode) / len(mode.eigenvalues)
        places = [(clip(value.real), clip(value.imag)) for value in mode.eigenvalues]
        for across, up in places:
            axes.scatter(
                across,
                up,
                s=24 + 420 * share,
                facecolor="none" if mode.grows else colour,
                edgecolor=colour,
                linewidth=1.6,
                alpha=0.85,
                zorder=3,
            )
            reach = max(reach, 1.1 * abs(across), 1.1 * abs(up))
        axes.annotate(
            mode.label,
            (places[0][0], abs(places[0][1])),
            xytext=(7, -14) if mode.grows else (6, 7),  # two that lie together stay legible
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")


def draw_energies(axes: Axes, modes: Sequence[PlottedMode]) -> None:
    """Share of the window's energy of each mode."""
    begin(axes, "Energy of each mode", "mode, by falling modulus", "share of the window's energy")
    shown = list(modes[:_MOST_BARS])
    if len(modes) > len(shown):
        axes.set_title(f"Energy of the first {len(shown)} modes", loc="left", fontsize=10.5)
    colours = [VERMILION if mode.grows else BLUE for mode in shown]
    axes.bar(range(len(shown)), [_energy(mode) for mode in shown], color=colours, width=0.7)
    axes.set_xticks(range(len(shown)), [mode.label for mode in shown], fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_ylim(0.0, 1.0)
    for name, colour in (("decays", BLUE), ("grows", VERMILION)):
        if colour in colours:
            axes.bar(0.0, 0.0, color=colour, label=name)
    if shown:
        axes.legend(frameon=False, fontsize=8.5)


def draw_times(axes: Axes, modes: Sequence[PlottedMode]) -> None:
    """Time constants against residuals: on the lower right are slow modes that the data confirms."""
    begin(axes, "Time constant and residual", "time constant, trainer steps", "residual, |Av − λv| / |v|")
    known = [m for m in modes if math.isfinite(m.residual) and not math.isnan(m.time_constant_steps)]
    finite = [abs(m.time_constant_steps) for m in known if math.isfinite(m.time_constant_steps)]
    endless = 4.0 * max([*finite, 10.0])
    kinds = (
        ("decays", "o", BLUE, [m for m in known if 0 <= m.time_constant_steps < math.inf]),
        ("grows", "^", VERMILION, [m for m in known if m.time_constant_steps < 0]),
        ("neither: on the unit circle", ">", GREY, [m for m in known if m.time_constant_steps == math.inf]),
    )
    for label, marker, colour, those in kinds:
        if those:
            points = [(_time(mode, endless), clip_positive(mode.residual)) for mode in those]
            across, up = [point[0] for point in points], [point[1] for point in points]
            axes.scatter(across, up, marker=marker, color=colour, s=42, label=label, zorder=3)
            for mode, point in zip(those, points, strict=True):
                axes.annotate(mode.label, point, xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if known:
        axes.legend(frameon=False, fontsize=8.5)
    elif modes:
        axes.text(0.5, 0.5, "no residuals", transform=axes.transAxes, ha="center", va="center", color=GREY)


def _time(mode: PlottedMode, endless: float) -> float:
    """Where it goes on a logarithmic axis; what never ends goes to its right end."""
    steps = abs(mode.time_constant_steps)
    return clip_positive(steps if math.isfinite(steps) else endless)


def _energy(mode: PlottedMode) -> float:
    return min(max(mode.energy, 0.0), 1.0) if math.isfinite(mode.energy) else 0.0
