"""What each operator foretold, what it expected of itself, and what came."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.records import Record, recorded
from calibration.tasks import TASKS
from calibration.windows import Windows, windows_of
from koopcast_server.koopman import OperatorSettings, predict
from koopcast_server.koopman.confidence import at_stride

__all__ = [
    "DEFAULT",
    "HORIZONS",
    "KINDS",
    "OPERATORS",
    "Kind",
    "Outcome",
    "Plan",
    "outcomes",
    "tensor_outcomes",
]

Array = NDArray[np.float64]
Kind = Literal["deterministic", "minibatch", "minibatch, averaged"]

KINDS: tuple[Kind, ...] = ("deterministic", "minibatch", "minibatch, averaged")
HORIZONS = (1, 2, 3, 4, 6, 8, 16, 64)
"""Strides."""

DEFAULT = "default"
OPERATORS = {
    DEFAULT: OperatorSettings(),
    "rank 4, ridge 1e-4": OperatorSettings(rank_rule="fixed", rank=4, ridge=1e-4),
    "rank 8, ridge 1e-6": OperatorSettings(rank_rule="fixed", rank=8),
    "Gavish-Donoho": OperatorSettings(rank_rule="gavish_donoho"),
    "total least squares": OperatorSettings(debias="total_least_squares"),
    "forward-backward": OperatorSettings(debias="forward_backward"),
    "back-tested: rank": OperatorSettings(rank_rule="backtest"),
    "back-tested: ridge": OperatorSettings(ridge=None),
    "back-tested: debias": OperatorSettings(debias=None),
    "back-tested: rank, ridge": OperatorSettings(rank_rule="backtest", ridge=None),
    "back-tested: all": OperatorSettings(rank_rule="backtest", ridge=None, debias=None),
}
"""Operators by their names in tables."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        tasks: their names.
        seeds: runs of each.
        snapshots: window lengths.
        strides: in steps, 5 or 10.
        windows: of each run, length and stride.
        cache: where runs are kept.
    """

    tasks: tuple[str, ...]
    seeds: int
    snapshots: tuple[int, ...]
    strides: tuple[int, ...]
    windows: int
    cache: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """Predictions of one operator for one block of one run, from B windows, at H horizons.

    Attributes:
        task: its name.
        kind: of the run and its snapshots.
        operator: its name.
        predicted: (H, B), the error that was expected.
        tested: (H, B), the back-test's error at that horizon or the farthest tested.
        wrong: (H, B), |predicted - true|² of the displacements.
        truth: (H, B), |true displacement|².
        moved: (H, B) bool; False where the service would have declined.
    """

    task: str
    kind: Kind
    operator: str
    predicted: Array
    tested: Array
    wrong: Array
    truth: Array
    moved: NDArray[np.bool_]

    @property
    def true(self) -> Array:
        """(H, B), the error that came."""
        return np.asarray(np.sqrt(self.wrong / self.truth))


def outcomes(plan: Plan) -> Iterator[Outcome]:
    """Of every operator, a block a network."""
    for task, kind, record in _runs(plan):
        for snapshots in plan.snapshots:
            for stride in plan.strides:
                windows = _windows(record, kind, snapshots, stride, plan.windows)
                for operator, settings in OPERATORS.items():
                    yield _outcome(task, kind, operator, settings, windows)


def tensor_outcomes(
    plan: Plan, snapshots: int = 12, stride: int = 10
) -> Iterator[tuple[Outcome, list[Outcome]]]:
    """Of the default, from the same windows of each run: the network as one block, and a block a tensor."""
    settings = OPERATORS[DEFAULT]
    for task, kind, record in _runs(plan):
        found = []
        parts = [Record(*(one[[tensor]] for one in record.parts)) for tensor in range(len(record.sizes))]
        for part in (record, *parts):
            windows = _windows(part, kind, snapshots, stride, plan.windows)
            found.append(_outcome(task, kind, DEFAULT, settings, windows))
        yield found[0], found[1:]


def _runs(plan: Plan) -> Iterator[tuple[str, Kind, Record]]:
    for number, task in enumerate(plan.tasks, start=1):
        print(f"{number} of {len(plan.tasks)}: {task}", file=sys.stderr, flush=True)
        for seed in range(plan.seeds):
            records = recorded(task, seed, plan.cache)
            if TASKS[task].batch is None:
                yield task, "deterministic", records["plain"]
            else:
                yield task, "minibatch", records["plain"]
                yield task, "minibatch, averaged", records["averaged"]


def _windows(record: Record, kind: Kind, snapshots: int, stride: int, count: int) -> Windows:
    return windows_of(record, snapshots, stride, count, averaged=kind == "minibatch, averaged")


def _outcome(task: str, kind: Kind, operator: str, settings: OperatorSettings, windows: Windows) -> Outcome:
    found = predict(windows.products, replace(settings, always_move=True), HORIZONS)
    wrong, truth = windows.true_errors(found.velocity_coefficients, HORIZONS)
    tested = torch.stack(
        [at_stride(one.backtest_errors, ahead) for ahead, one in zip(HORIZONS, found.reports, strict=True)]
    )
    return Outcome(
        task,
        kind,
        operator,
        predicted=torch.stack([one.predicted_error for one in found.reports]).numpy(),
        tested=tested.numpy(),
        wrong=wrong.clamp(min=0.0).numpy(),  # what rounding makes of an error of nothing may be negative
        truth=truth.numpy(),
        moved=(found.moved & ~(tested >= 1.0)).numpy(),
    )
