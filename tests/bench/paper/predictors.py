"""What says where the weights will be: the paper's operators, and baselines that know no operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from paper import textbook
from paper.networks import Layout
from paper.timing import Cost, Stopwatch

__all__ = ["WITHIN", "Answer", "Average", "Line", "Predictor", "Snapshots", "Stay", "Textbook"]

Array = NDArray[np.float64]
Snapshots = NDArray[np.float32]

WITHIN: Final = ", within what the snapshots span"
"""Ends the label of such predictors."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction.

    Attributes:
        weights: (size) float64; not finite where the operator overflowed.
        cost: from snapshots in memory to weights; with a service the round trip of ``predict_ahead``.
        push_cost: what the snapshots' way to the service cost before, all of them together; None without one.
        chosen_steps: how far ahead a probe preferred to look, 0 where it stayed; None without one.
    """

    weights: Array
    cost: Cost
    push_cost: Cost | None = None
    chosen_steps: float | None = None


class Predictor(Protocol):
    """Predicts weights."""

    @property
    def label(self) -> str:
        """What the table calls it."""

    @property
    def formula(self) -> str:
        """Label of the paper's operators that it should agree with; empty: none."""

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Weights `steps` optimizer steps after the last row of (snapshots, size), one row for every step."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Persistence: the weights stay where they are."""

    label: str = "weights stay"
    formula: str = ""

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Return the last row."""
        return Answer(window[-1].astype(np.float64), Cost(0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Line:
    """Linear extrapolation: the displacement of the last `steps` steps (or of the whole window) once more."""

    label: str = "line through the last T steps"
    formula: str = ""

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Return the last row plus `steps` times the mean velocity."""
        watch = Stopwatch()
        back = min(steps, len(window) - 1)
        last = window[-1].astype(np.float64)
        weights = last + (steps / back) * (last - window[-1 - back])
        return Answer(weights, watch.lap())


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of the last snapshots: it looks nowhere ahead, but oscillation and noise average out."""

    snapshots: int
    formula: str = ""

    @property
    def label(self) -> str:
        """How many."""
        return f"mean of the last {self.snapshots:,}"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Return the mean."""
        watch = Stopwatch()
        return Answer(window[-self.snapshots :].mean(axis=0, dtype=np.float64), watch.lap())


@dataclass(frozen=True, slots=True)
class Textbook:
    """The paper's operators of one partition (`textbook`), in float64 from float32 weights.

    Attributes:
        layout: of the flat weights.
        partition: one of `textbook.PARTITIONS`.
        quasi_inputs: of a quasi-node.
        within: what no earlier snapshot spans stays, instead of going to zero.
        formula: of another predictor; none.
    """

    layout: Layout
    partition: str
    quasi_inputs: int = 5
    within: bool = False
    formula: str = ""

    @property
    def label(self) -> str:
        """The partition."""
        chunk = f" of {self.quasi_inputs}" if self.partition == "quasi-node" else ""
        return f"paper, {self.partition}{chunk}" + (WITHIN if self.within else "")

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Fit on every row and apply the power."""
        blocks = textbook.partition_blocks(self.layout, self.partition, self.quasi_inputs)
        watch = Stopwatch()
        weights = textbook.predict(window.astype(np.float64), blocks, steps, within=self.within)
        return Answer(weights, watch.lap())
