"""The outcomes as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from calibration.cases import DEFAULT, HORIZONS, KINDS, OPERATORS, Array, Outcome
from calibration.tasks import TASKS

__all__ = [
    "CLASSES",
    "calibration_table",
    "decline_table",
    "operator_table",
    "partition_table",
    "pooled",
    "selection_table",
]

CLASSES = {"1-3": (1, 2, 3), "4-8": (4, 6, 8), "16": (16,), "64": (64,)}
"""Horizons that are counted together. Unit: strides."""

_LEAST, _MOST = 1e-6, 1e3
"""Errors beyond these count as these: below, single precision ends; above, wrong is wrong."""


def pooled(some: Sequence[Outcome], value: Callable[[Outcome], Array], horizons: Sequence[int]) -> Array:
    """All values (H, B) of these outcomes at these horizons, as one row."""
    rows = [HORIZONS.index(horizon) for horizon in horizons]
    return np.concatenate([value(one)[rows].ravel() for one in some])


def calibration_table(some: Sequence[Outcome]) -> str:
    """How the errors compare with those that were expected, for both halves of the tasks."""
    lines = [
        "| tasks | half | strides | cases | median error | factor off | back-test alone | error ≤ expected | ≤ 2 × | rank correlation |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for fitted in (True, False):
            mine = [one for one in some if one.kind == kind and TASKS[one.task].fitted == fitted]
            half = "fitted" if fitted else "checked"
            for name, horizons in CLASSES.items() if mine else ():
                lines.append(f"| {kind} | {half} | {name} | {_calibration(mine, horizons)} |")
    return "\n".join(lines)


def operator_table(some: Sequence[Outcome]) -> str:
    """The same by operator, all tasks of a kind and all horizons together."""
    lines = ["| operator | " + " | ".join(f"{kind}: factor off, ≤ expected, ≤ 2 ×" for kind in KINDS) + " |"]
    lines.append("|---" * (1 + len(KINDS)) + "|")
    for operator in OPERATORS:
        cells = []
        for kind in KINDS:
            mine = [one for one in some if one.kind == kind and one.operator == operator]
            cells.append(_figures(*_expected_and_true(mine, HORIZONS)))
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    return "\n".join(lines)


def selection_table(some: Sequence[Outcome]) -> str:
    """Every other operator's errors over the default's, from the same windows, see `_ratio`."""
    lines = ["| tasks | operator | " + " | ".join(f"{name} strides" for name in CLASSES) + " |"]
    lines.append("|---" * (2 + len(CLASSES)) + "|")
    for kind in KINDS:
        base = [one for one in some if one.kind == kind and one.operator == DEFAULT]
        for operator in OPERATORS if base else ():
            if operator == DEFAULT:
                continue
            mine = [one for one in some if one.kind == kind and one.operator == operator]
            cells = [_ratio(mine, base, horizons) for horizons in CLASSES.values()]
            lines.append(f"| {kind} | {operator} | {' | '.join(cells)} |")
    return "\n".join(lines)


def decline_table(some: Sequence[Outcome]) -> str:
    """How often the default moved where it should have stayed, and stayed where it should have moved."""
    lines = [
        "| tasks | strides | declined | of moved: error ≥ 1 | of declined: error < 1 | of declined: error < 0.9 |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for kind in KINDS:
        mine = [one for one in some if one.kind == kind and one.operator == DEFAULT]
        for name, horizons in CLASSES.items() if mine else ():
            true = pooled(mine, lambda one: one.true, horizons)
            moved = pooled(mine, lambda one: one.moved.astype(np.float64), horizons) > 0
            lines.append(
                f"| {kind} | {name} | {_share(~moved)} | {_share(true[moved] >= 1)} | {_share(true[~moved] < 1)} "
                f"| {_share(true[~moved] < 0.9)} |"
            )
    return "\n".join(lines)


def partition_table(runs: Sequence[tuple[Outcome, Sequence[Outcome]]]) -> str:
    """Blocks of a tensor: how honest each one is, and their errors together against that of one block.

    Args:
        runs: each run's network as one block, and its tensors' blocks.
    """
    lines = [
        "| tasks | strides | of blocks: factor off, ≤ expected, ≤ 2 × | of the network: error / that of one block |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [run for run in runs if run[0].kind == kind]
        blocks = [block for _, parts in mine for block in parts]
        for name, horizons in CLASSES.items():
            rows = [HORIZONS.index(horizon) for horizon in horizons]
            ratio = np.concatenate([(_together(parts) / one.true)[rows].ravel() for one, parts in mine])
            figures = _figures(*_expected_and_true(blocks, horizons))
            lines.append(f"| {kind} | {name} | {figures} | {_geometric_mean(ratio):.2f} |")
    return "\n".join(lines)


def _together(run: Sequence[Outcome]) -> Array:
    """(H, B), the error of all blocks of a run together."""
    wrong: Array = np.sum([one.wrong for one in run], axis=0)
    truth: Array = np.sum([one.truth for one in run], axis=0)
    return np.asarray(np.sqrt(wrong / truth))


def _expected_and_true(some: Sequence[Outcome], horizons: Sequence[int]) -> tuple[Array, Array]:
    expected = pooled(some, lambda one: one.predicted, horizons)
    true = pooled(some, lambda one: one.true, horizons)
    return np.clip(expected, _LEAST, _MOST), np.clip(true, _LEAST, _MOST)


def _calibration(some: Sequence[Outcome], horizons: Sequence[int]) -> str:
    expected, true = _expected_and_true(some, horizons)
    alone = np.clip(pooled(some, lambda one: one.tested, horizons), _LEAST, _MOST)
    return " | ".join(
        [
            f"{len(true)}",
            f"{np.median(true):.2g}",
            f"{_factor_off(true, expected):.2f}",
            f"{_factor_off(true, alone):.2f}",
            _share(true <= expected),
            _share(true <= 2 * expected),
            f"{spearmanr(true, expected).statistic:.2f}",
        ]
    )


def _figures(expected: Array, true: Array) -> str:
    return f"{_factor_off(true, expected):.2f}, {_share(true <= expected)}, {_share(true <= 2 * expected)}"


def _factor_off(true: Array, expected: Array) -> float:
    """The median of how far off the expectation is, as a factor: 10 to the power of median |log10(true / expected)|."""
    return float(10 ** np.median(np.abs(np.log10(true / expected))))


def _ratio(mine: Sequence[Outcome], base: Sequence[Outcome], horizons: Sequence[int]) -> str:
    """Median / geometric mean of the ratio (how often < 0.95, > 1.05, > 2)."""
    true, default = (
        np.clip(pooled(some, lambda one: one.true, horizons), _LEAST, _MOST) for some in (mine, base)
    )
    ratio = true / default
    return (
        f"{np.median(ratio):.2f} / {_geometric_mean(ratio):.2f} ({_share(ratio < 0.95)}, {_share(ratio > 1.05)}, "
        f"{_share(ratio > 2)})"
    )


def _geometric_mean(ratio: Array) -> float:
    return float(np.exp(np.log(np.clip(ratio, 1 / _MOST, _MOST)).mean()))


def _share(what: NDArray[np.bool_]) -> str:
    return f"{100 * np.mean(what):.0f} %" if what.size else "-"
