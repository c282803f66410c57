"""koopcast's own predictions, through a real service and without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import koopcast
from koopcast import wire
from koopcast.operator import MAX_SEGMENT_BLOCK, MAX_WINDOW
from koopcast_server.answering import Question
from koopcast_server.held_window import HeldWindow
from koopcast_server.window_shape import JobShape
from paper.networks import Layout
from paper.predictors import Answer, Predictor, Snapshots
from paper.timing import Cost, Stopwatch

__all__ = ["OPERATORS", "Direct", "Sampling", "Service", "koopcast_predictors"]

Array = NDArray[np.float64]
Loss = Callable[[Array], float]

_PATIENCE_SECONDS: Final = 600.0
"""How long an answer may take: nodes of 785 weights take longer than the usual deadline."""
OPERATORS: Final = ("default", "preset", "quasi-nodes of 5", "weights", "tensors")
"""Names of koopcast's operators here: its default, and what the preset makes of nodes and of other blocks."""
_PROBED: Final = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of T that a probe may choose."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which rows of a window of every step are pushed: so many, evenly spaced, the last one among them.

    Attributes:
        rows: rows that the window has.
        snapshots: how many are wanted.
    """

    rows: int
    snapshots: int

    @property
    def stride(self) -> int:
        """Steps from one to the next."""
        return max(1, (self.rows - 1) // (self.snapshots - 1))

    @property
    def chosen(self) -> range:
        """Their row numbers."""
        count = min(self.snapshots, self.rows)
        return range(self.rows - 1 - self.stride * (count - 1), self.rows, self.stride)


@dataclass(frozen=True, slots=True)
class Service:
    """koopcast through a real service: snapshots are pushed one by one, then `predict_ahead` is asked.

    Attributes:
        client: of the service.
        layout: of the flat weights.
        operator: the job's.
        name: what the table calls it.
        snapshots: most snapshots that are pushed.
        formula: label of the paper's operators that it should agree with.
        probe: loss at weights (size): the best of the horizons T/8, T/4, T/2 and T is taken, and none of them unless
            the loss falls.
    """

    client: koopcast.Client
    layout: Layout
    operator: koopcast.Operator
    name: str
    snapshots: int
    formula: str = ""
    probe: Loss | None = None

    @property
    def label(self) -> str:
        """Name, and that there is a service."""
        return f"koopcast, {self.name}, service"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Open a job, push, ask, close."""
        sampling = Sampling(len(window), self.snapshots)
        tensors = _named(self.layout, window[-1])
        with self.client.open_job("paper", tensors, stride=sampling.stride, operator=self.operator) as job:
            watch = Stopwatch()
            for row in sampling.chosen:
                job.push(row, _named(self.layout, window[row]))
            pushes = watch.lap()
            if self.probe is not None:
                return self._probed(job, window[-1].astype(np.float64), steps, watch, pushes)
            prediction = job.predict_ahead(steps, timeout_seconds=_PATIENCE_SECONDS)
            asking = watch.lap()
        return Answer(window[-1] + _flat(prediction), asking, pushes)

    def _probed(self, job: koopcast.Job, start: Array, steps: int, watch: Stopwatch, pushes: Cost) -> Answer:
        assert self.probe is not None
        horizons = [steps * share for share in _PROBED]
        predictions = job.predict_ahead(horizons, timeout_seconds=_PATIENCE_SECONDS)
        best = (self.probe(start), 0.0, start)
        for horizon, prediction in zip(horizons, predictions, strict=True):
            weights = start + _flat(prediction)
            best = min(best, (self.probe(weights), horizon, weights), key=lambda each: each[0])
        return Answer(best[2], watch.lap(), pushes, best[1])


@dataclass(frozen=True, slots=True)
class Direct:
    """The same window and operators in this thread: no service, no network. Attributes as `Service` has them."""

    layout: Layout
    operator: koopcast.Operator
    name: str
    snapshots: int
    formula: str = ""

    @property
    def label(self) -> str:
        """Name, and that there is no service."""
        return f"koopcast, {self.name}, functions alone"

    def predict(self, window: Snapshots, steps: int) -> Answer:
        """Fill a window, solve, combine."""
        sampling = Sampling(len(window), self.snapshots)
        specs = {name: wire.TensorSpec("float32", shape) for name, shape in self.layout.shapes.items()}
        shape = JobShape.of(wire.Layout(specs), self.operator, sampling.stride, "float32")
        held = HeldWindow(shape, torch.device("cpu"))
        watch = Stopwatch()
        for row in sampling.chosen:
            data = window[row].tobytes()
            held.land(0, data, wire.checksum(data))
            held.publish(starts_segment=row == sampling.chosen.start)
        pushes = watch.lap()
        answer = held.solve([self.operator], Question((float(steps),), 0.0))[0][0]
        displacement = held.displacement(answer).numpy()
        return Answer(window[-1] + displacement.astype(np.float64), watch.lap(), pushes)


def koopcast_predictors(
    layout: Layout, client: koopcast.Client | None, rows: int, probe: Loss, served: Collection[str]
) -> list[Predictor]:
    """The default operator, without a probe and with one; and the paper's, as the preset has them.

    A whole tensor of the classifier is too large to accumulate: its window holds at most 1,024 snapshots, evenly spaced.

    Args:
        layout: of the flat weights.
        client: of a service; None: without one.
        rows: of the window.
        probe: loss at flat weights.
        served: which of `OPERATORS` also go through the service; pushing every step there takes its time.
    """
    predictors: list[Predictor] = []
    for name, operator, formula in zip(OPERATORS, *_operators(layout, rows), strict=True):
        snapshots = rows if operator.window == "segment" else operator.window
        predictors.append(Direct(layout, operator, name, snapshots, formula))
        if client is not None and name in served:
            predictors.append(Service(client, layout, operator, name, snapshots, formula))
    if client is not None:
        default, snapshots = koopcast.Operator(), koopcast.Operator().snapshots_wanted
        predictors.append(Service(client, layout, default, "default with a probe", snapshots, probe=probe))
    return predictors


def _operators(layout: Layout, rows: int) -> tuple[list[koopcast.Operator], list[str]]:
    """For each of `OPERATORS` the operator, and the label of the formula that it should agree with."""
    paper = koopcast.Operator.preset("dogra-redman")
    largest = max(math.prod(shape) for shape in layout.shapes.values())
    window: int | Literal["segment"] = "segment" if largest <= MAX_SEGMENT_BLOCK else min(rows, MAX_WINDOW)
    operators = [
        koopcast.Operator(),
        paper,
        replace(paper, partition="quasi_node", quasi_node_inputs=5),
        replace(paper, partition="weight"),
        replace(paper, partition="tensor", window=window),
    ]
    whole = window in ("segment", rows)
    return operators, [
        "",
        "paper, node",
        "paper, quasi-node of 5",
        "paper, weight",
        "paper, tensor" if whole else "",
    ]


def _flat(prediction: koopcast.Prediction) -> Array:
    return np.concatenate([array.ravel() for array in prediction.displacement.values()]).astype(np.float64)


def _named(layout: Layout, flat: Snapshots) -> dict[str, Snapshots]:
    ends = np.cumsum([int(np.prod(shape)) for shape in layout.shapes.values()])
    parts = np.split(flat, ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(layout.shapes.items(), parts, strict=True)
    }
