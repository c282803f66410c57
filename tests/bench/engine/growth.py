"""How times grow with the model, the window and the number of blocks; the other two stay as they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.jobs import RANK, Job, matrix_of, one_block
from engine.measuring import apart, median_seconds, milliseconds, table
from koopcast.operator import Operator
from koopcast.wire import TensorSpec

__all__ = ["Grid", "Point", "Sweep", "measure", "tell"]

Axis = Literal["elements", "window", "blocks"]
LENGTH = 16
BOUNDS: dict[Axis, float] = {"elements": 1.0, "window": 2.0, "blocks": 1.0}
"""The powers that times may grow with."""
_SLACK = 0.15


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured.

    Attributes:
        elements: n, of one block, 16 snapshots.
        windows: m, of one block of `fixed` elements.
        blocks: their numbers, of `fixed` elements together, 16 snapshots.
        fixed: n.
    """

    elements: tuple[int, ...]
    windows: tuple[int, ...]
    blocks: tuple[int, ...]
    fixed: int


@dataclass(frozen=True, slots=True)
class Point:
    """Times of a full window. Unit: seconds.

    Attributes:
        at: n, m, or the number of blocks.
        nbytes: of the window.
        push: of one snapshot that stands in its place.
        solve: Gram matrices, or short blocks themselves, to coefficients or values.
        combine: to a displacement in new memory.
    """

    at: int
    nbytes: int
    push: float
    solve: float
    combine: float

    @property
    def answer(self) -> float:
        """Solve and combine."""
        return self.solve + self.combine


@dataclass(frozen=True, slots=True)
class Sweep:
    """Points along one axis; `fixed` says what was not changed."""

    axis: Axis
    fixed: str
    points: tuple[Point, ...]


def measure(grid: Grid, threads: int, rounds: int) -> list[Sweep]:
    """All three sweeps, each in a process of its own."""
    plans: tuple[tuple[Axis, str, Sequence[int]], ...] = (
        ("elements", f"m = {LENGTH}, one block", grid.elements),
        ("window", f"n = {grid.fixed:,}, one block", grid.windows),
        ("blocks", f"n = {grid.fixed:,}, m = {LENGTH}", grid.blocks),
    )
    return [
        Sweep(axis, fixed, apart(threads, points_at, axis, tuple(values), grid.fixed, rounds))
        for axis, fixed, values in plans
    ]


def points_at(axis: Axis, values: tuple[int, ...], fixed: int, rounds: int) -> tuple[Point, ...]:
    """Measure one sweep, one window after the other."""
    return tuple(point_at(axis, value, fixed, rounds) for value in values)


def point_at(axis: Axis, value: int, fixed: int, rounds: int) -> Point:
    """Measure one point."""
    length = value if axis == "window" else LENGTH
    specs: dict[str, TensorSpec] = one_block(value if axis == "elements" else fixed)
    if axis == "blocks":
        specs = matrix_of(value, fixed // value)
    operator = Operator(
        partition="node" if axis == "blocks" else "network",
        window=length,
        rank=RANK,
        always_move=True,  # four snapshots cannot tell eight modes, and zeros would cost nothing
    )
    job = Job(specs, operator)
    job.fill()
    push = median_seconds(job.publish, rounds)  # what stands there is two snapshots old, and costs the same
    job.refill()
    solved = job.solve()
    solve = median_seconds(job.solve, rounds)
    combine = median_seconds(lambda: job.held.displacement(solved), rounds)
    return Point(value, job.window.nbytes, push, solve, combine)


def tell(sweep: Sweep) -> str:
    """A table with the power that each time grows with from the line above, and where that is too much."""
    head = (
        {"elements": "n", "window": "m", "blocks": "blocks"}[sweep.axis],
        "window",
        "push",
        "power",
        "solve",
        "power",
        "combine",
        "power",
        "answer",
        "power",
    )
    times: tuple[Callable[[Point], float], ...] = (_push, _solve, _combine, _answer)
    rows = []
    for before, point in zip((None, *sweep.points), sweep.points, strict=False):
        row = [f"{point.at:,}", f"{point.nbytes / 1e6:,.1f} MB"]
        for which in times:
            power = "" if before is None else f"{_power(before, point, which):.2f}"
            row += [milliseconds(which(point)), power]
        rows.append(row)
    return f"{sweep.fixed}:\n\n{table(head, rows)}\n\n{_verdict(sweep)}"


def _verdict(sweep: Sweep) -> str:
    bound = BOUNDS[sweep.axis]
    word = "quadratic" if bound == 2.0 else "linear"
    faults = [
        f"{name} from {before.at:,} to {point.at:,} (power {_power(before, point, which):.2f})"
        for before, point in itertools.pairwise(sweep.points)
        for name, which in (("push", _push), ("answer", _answer))
        if _power(before, point, which) > bound + _SLACK
    ]
    return f"Steeper than {word}: {'; '.join(faults) or 'nowhere'}."


def _push(point: Point) -> float:
    return point.push


def _solve(point: Point) -> float:
    return point.solve


def _combine(point: Point) -> float:
    return point.combine


def _answer(point: Point) -> float:
    return point.answer


def _power(before: Point, point: Point, which: Callable[[Point], float]) -> float:
    return math.log(which(point) / which(before)) / math.log(point.at / before.at)
