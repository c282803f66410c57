"""Everything that says where the weights will be: the paper's operators, koopcast, and two that know no operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import textbook
from networks import Layout
from numpy.typing import NDArray
from timing import Cost, Stopwatch

import koopcast

__all__ = ["Answer", "Line", "Predictor", "Service", "Stay", "Textbook"]

Array = NDArray[np.float64]
Snapshots = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction.

    Attributes:
        weights: (size) float64; not finite where the operator overflowed.
        cost: from snapshots in memory to weights; with a service the round trip of ``predict_ahead``.
        push_cost: what the snapshots' way to the service cost before, all of them together; None without one.
    """

    weights: Array
    cost: Cost
    push_cost: Cost | None = None


class Predictor(Protocol):
    """Predicts weights."""

    @property
    def label(self) -> str:
        """What the table calls it."""

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Weights `steps` optimizer steps after the last row of (snapshots, size), one row for every step."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Persistence: the weights stay where they are."""

    label: str = "weights stay"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Return the last row."""
        return Answer(window[-1].astype(np.float64), Cost(0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Line:
    """Linear extrapolation: the displacement of the last `steps` steps (or of the whole window) once more."""

    label: str = "line through the last T steps"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Return the last row plus `steps` times the mean velocity."""
        watch = Stopwatch()
        back = min(steps, len(window) - 1)
        last = window[-1].astype(np.float64)
        weights = last + (steps / back) * (last - window[-1 - back])
        return Answer(weights, watch.lap())


@dataclass(frozen=True, slots=True)
class Textbook:
    """The paper's operators of one partition (`textbook`), in float64 from float32 weights."""

    layout: Layout
    partition: str
    quasi_inputs: int = 5

    @property
    def label(self) -> str:
        """The partition."""
        chunk = f" of {self.quasi_inputs}" if self.partition == "quasi-node" else ""
        return f"paper, {self.partition}{chunk}"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Fit on every row and apply the power."""
        blocks = textbook.partition_blocks(self.layout, self.partition, self.quasi_inputs)
        watch = Stopwatch()
        weights = textbook.predict(window.astype(np.float64), blocks, steps)
        return Answer(weights, watch.lap())


@dataclass(frozen=True, slots=True)
class Service:
    """koopcast, through a real service: `snapshots` of them, evenly spaced over the window, pushed one by one."""

    client: koopcast.Client
    layout: Layout
    operator: koopcast.Operator
    snapshots: int
    label: str

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Open a job, push, ask, close."""
        stride = (len(window) - 1) // (self.snapshots - 1)
        first = len(window) - 1 - stride * (self.snapshots - 1)
        rows = range(first, len(window), stride)
        with self.client.open_job(
            "paper", self._named(window[-1]), stride=stride, operator=self.operator
        ) as job:
            watch = Stopwatch()
            for row in rows:
                job.push(row, self._named(window[row]))
            pushes = watch.lap()
            prediction = job.predict_ahead(steps)
            asking = watch.lap()
        displacement = np.concatenate([array.ravel() for array in prediction.displacement.values()])
        return Answer(window[-1] + displacement.astype(np.float64), asking, pushes)

    def _named(self, flat: Snapshots) -> dict[str, Snapshots]:
        shapes = self.layout.shapes
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = np.split(flat, ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
