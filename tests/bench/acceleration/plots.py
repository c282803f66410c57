"""The plots: every method's ratio on every task, learning curves with their jumps, the index against the gain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from acceleration.score import (
    KINDS,
    METHODS,
    OURS,
    PLAIN,
    SHOWN_SHARE,
    Array,
    Key,
    Plan,
    Record,
    Score,
    scores_of,
)
from acceleration.summary import indices_and_gains, steps_to, summarise

__all__ = ["CURVES_OF", "draw_all", "draw_curves", "draw_predictability", "draw_ratios"]

CURVES_OF: Final = {"adamw": "curves.png", "sgd-momentum": "curves-sgd-momentum.png"}
"""Optimizers whose learning curves are drawn, and the files."""

_BLACK, _GREY, _BLUE, _ORANGE, _GREEN, _PINK = "black", "0.45", "#0072b2", "#d55e00", "#009e73", "#cc79a7"
"""Okabe and Ito's colours: told apart with every common kind of colour blindness."""
_LOOKS: Final[Mapping[str, tuple[str, str]]] = {
    PLAIN: (_BLACK, "o"),
    "lbfgs": (_BLACK, "s"),
    "ema": (_GREEN, "o"),
    "lawa": (_GREEN, "s"),
    "lookahead": (_PINK, "^"),
    "snoo": (_PINK, "v"),
    "linear": (_ORANGE, "D"),
    "linear-mask": (_ORANGE, "P"),
    "nodes": (_GREY, "X"),
    "pdt": (_ORANGE, "*"),
    "ours": (_BLUE, "o"),
    "ours-no-probe": (_BLUE, "o"),
}
"""Colour (a family of methods) and marker (the one of them)."""
_DASHES: Final = {
    "lbfgs": "--",
    "linear-mask": ":",
    "pdt": "--",
    "lawa": "--",
    "snoo": "--",
    "ours-no-probe": "--",
}
_ALL: Final = "all {kind}"
_DPI: Final = 130
_FINE: Final = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10)
_COARSE: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)


def draw_all(records: Iterable[Record], plan: Plan, folder: Path) -> list[Path]:
    """Draw all plots into a folder, and return their paths; a plot without any data is left out."""
    records = list(records)
    scores = scores_of(records)
    paths = {
        folder / "acceleration.png": draw_ratios(scores, plan),
        **{
            folder / name: draw_curves(records, scores, plan, optimizer)
            for optimizer, name in CURVES_OF.items()
        },
        folder / "predictability.png": draw_predictability(scores, plan),
    }
    drawn = {path: figure for path, figure in paths.items() if figure is not None}
    with mpl.rc_context({"font.size": 9}):
        for path, figure in drawn.items():
            figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return list(drawn)


def draw_ratios(scores: Sequence[Score], plan: Plan) -> Figure | None:
    """A row for every task and one for each kind as a whole, a mark for every method: fewer steps to the target.

    Headline optimizers, geometric means; the bar is the 95 % interval of koopcast's.
    """
    rows = [
        (name, tasks)
        for kind in KINDS
        if (some := plan.tasks(kind))
        for name, tasks in ((_ALL.format(kind=kind), some), *((task, [task]) for task in some))
    ]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.5, 1.7 + 0.46 * len(rows)), layout="constrained")
        axes = figure.subplots()
        shown = [
            ratio
            for row, (_, tasks) in enumerate(rows)
            for ratio in _ratio_row(axes, scores, plan, tasks, row)
        ]
        if not shown:
            return None
        axes.axvline(1.0, color=_BLACK, linewidth=1)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        for row, (name, tasks) in enumerate(rows):
            if name not in tasks:
                axes.get_yticklabels()[row].set_fontweight("bold")
                axes.axhspan(row - 0.5, row + 0.5, color="0.93", linewidth=0, zorder=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _ratio_axis(axes, shown)
        axes.set_xlabel(
            f"plain training's steps / the method's, to plain's best loss within {SHOWN_SHARE} % of its budget"
        )
        handles, labels = axes.get_legend_handles_labels()
        by_label = dict(zip(labels, handles, strict=True))
        named = [METHODS.get(method, method) for method in plan.methods]
        wanted = [label for label in named if label in by_label]
        figure.legend(
            [by_label[label] for label in wanted], wanted, loc="outside upper center", ncols=5, frameon=False
        )
    return figure


def _ratio_row(
    axes: Axes, scores: Sequence[Score], plan: Plan, tasks: Sequence[str], row: int
) -> list[float]:
    """Marks of all methods, koopcast's in the middle and the others' on lanes around it; what must be seen."""
    due, shown = plan.due(tasks, plan.headline), []
    methods = [method for method in plan.methods if method != PLAIN]
    above = len(methods) // 2
    lanes = [*np.linspace(-0.38, -0.2, above), *np.linspace(0.2, 0.38, len(methods) - above)]
    others = iter(lanes)
    for method in methods:
        lane = 0.0 if method == OURS[0] else float(next(others))
        found = summarise(scores, method, due, steps_to(SHOWN_SHARE))
        if found is None:
            continue
        colour, marker = _LOOKS.get(method, (_GREY, "o"))
        mine = method == OURS[0]
        face = "white" if method == OURS[1] else colour
        if mine:
            axes.hlines(row, found.low, found.high, color=colour, linewidth=3, alpha=0.5, zorder=3)
            shown += [found.low, found.high]
            value = f"{found.mean:.2f}×"
            axes.annotate(value, (1.01, row), xycoords=("axes fraction", "data"), color=colour, va="center")
        axes.scatter(
            found.mean, row + lane, s=80 if mine else 26, marker=marker, facecolor=face, edgecolor=colour,
            linewidth=1.1, zorder=5 if mine else 4, label=METHODS.get(method, method),
        )  # fmt: skip
        shown.append(found.mean)
    return shown


def _ratio_axis(axes: Axes, shown: Sequence[float], *, vertical: bool = False) -> None:
    """A logarithmic axis that says 0.5 and 2, not 10 to the power of something."""
    low, high = min(*shown, 0.8) / 1.1, max(*shown, 1.25) * 1.1
    ticks = _COARSE if high / low > 20 else _FINE
    axis = axes.yaxis if vertical else axes.xaxis
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    (axes.set_ylim if vertical else axes.set_xlim)(low, high)
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low < tick < high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.grid(axis="y" if vertical else "x", alpha=0.3)


def draw_curves(
    records: Iterable[Record], scores: Iterable[Score], plan: Plan, optimizer: str
) -> Figure | None:
    """Learning curves of the first seed, a panel a task: plain, koopcast with its jumps, and the best two others."""
    seed = plan.seeds[0]
    runs = {(one["task"], one["method"]): one for one in records if _is(one, optimizer, seed)}
    ratios = {(one.key, one.method): one.steps[SHOWN_SHARE] for one in scores}
    tasks = [task for task in plan.tasks() if (task, PLAIN) in runs]
    if not tasks:
        return None
    columns = min(4, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(3.1 * columns + 0.5, 2.7 * lines + 0.6), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            best = _best_others(ratios, (task, optimizer, seed))
            for method in (PLAIN, *best, OURS[0]):
                if (task, method) in runs:
                    _curve(axes, runs[task, method], method)
            axes.set_title(task, fontsize=9)
            _loss_axis(axes)
            axes.legend(fontsize=7, frameon=False, loc="best", handlelength=1.6)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        figure.supxlabel("steps, probes counted")
        figure.supylabel("loss that counts (validation or residual)")
        figure.suptitle(f"{optimizer}, seed {seed}; dots: jumps that were accepted", fontsize=10)
    return figure


def _loss_axis(axes: Axes) -> None:
    """A logarithmic axis; where it spans little, its labels are plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 30:
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0) if high / low < 8 else (1.0, 3.0)))
        axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _is(record: Record, optimizer: str, seed: int) -> bool:
    return record["optimizer"] == optimizer and record["seed"] == seed and not record["timed"]


def _best_others(ratios: Mapping[tuple[Key, str], float], key: Key) -> list[str]:
    """The two methods, neither plain nor koopcast's, that needed fewest steps."""
    found = {method: ratio for (where, method), ratio in ratios.items() if where == key}
    others = [method for method in found if method not in (PLAIN, *OURS)]
    return sorted(others, key=lambda method: -found[method])[:2]


def _curve(axes: Axes, record: Record, method: str) -> None:
    counted, losses = _finite(record)
    colour, _ = _LOOKS.get(method, (_GREY, "o"))
    mine = method == OURS[0]
    style = _DASHES.get(method, "-")
    label = METHODS.get(method, method)
    axes.plot(
        counted,
        losses,
        style,
        color=colour,
        linewidth=1.8 if mine else 1.1,
        label=label,
        zorder=4 if mine else 3,
    )
    jumps = [jump[0] for jump in (record.get("facts") or {}).get("jumps", ()) if jump[1]]
    if mine and jumps and len(counted):
        at = np.exp(np.interp(jumps, counted, np.log(losses)))
        axes.scatter(jumps, at, s=20, color=colour, edgecolor="white", linewidth=0.6, zorder=5)


def _finite(record: Record) -> tuple[Array, Array]:
    losses = np.array([math.nan if loss is None else loss for loss in record["loss"]], dtype=np.float64)
    shown = np.isfinite(losses) & (losses > 0)
    return np.asarray(record["counted"], dtype=np.float64)[shown], losses[shown]


def draw_predictability(scores: Iterable[Score], plan: Plan) -> Figure | None:
    """The index of every run of koopcast against the steps it gained, all tasks and optimizers."""
    found = indices_and_gains(scores, plan)
    if not found:
        return None
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        looks: Mapping[str, Any] = {KINDS[0]: (_BLUE, "o"), KINDS[1]: (_ORANGE, "^")}
        for kind, (colour, marker) in looks.items():
            some = [one for one in found if one.kind == kind]
            if some:
                index, gain = [one.index for one in some], [one.gain for one in some]
                axes.scatter(
                    index,
                    gain,
                    s=22,
                    color=colour,
                    marker=marker,
                    alpha=0.7,
                    linewidth=0,
                    label=f"{kind} tasks",
                )
        axes.axhline(1.0, color=_BLACK, linewidth=1)
        _ratio_axis(axes, [one.gain for one in found], vertical=True)
        axes.set_xlabel("predictability index of the run")
        axes.set_ylabel(f"fewer steps to the {SHOWN_SHARE} % target")
        figure.legend(frameon=False, loc="outside upper left", ncols=2)
    return figure
