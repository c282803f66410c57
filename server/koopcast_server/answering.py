"""Answers of one job, from what its window tells of the blocks: no array as long as the model is touched here.

Part of the engine's room. `held_window` adds the window whose snapshots the service holds, `held_grams` the products of
one that a trainer holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from koopcast.errors import FailedPrecondition
from koopcast.operator import Operator
from koopcast.prediction import Block, Summary
from koopcast_server.koopman import UnevenClockError, resampling, totals
from koopcast_server.solving import Horizons, Solved, Solver, Store
from koopcast_server.telling import block_reports, settings_of, summary_of
from koopcast_server.window_shape import JobShape

__all__ = ["Answer", "Answering", "Question"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a window.

    Attributes:
        horizons_steps: trainer steps ahead, for each answer.
        offset_steps: from the time of the last snapshot to where the displacement starts, in trainer steps.
        clocks: of the snapshots held, oldest first, where the question is asked on the clock.
        intervals: the horizons on that clock.
        offset_clock: the offset on that clock.
        most_blocks: blocks to report on.
    """

    horizons_steps: tuple[float, ...]
    offset_steps: float
    clocks: tuple[float, ...] = ()
    intervals: tuple[float, ...] = ()
    offset_clock: float = 0.0
    most_blocks: int = 256

    def each(self) -> list[Question]:
        """The same question, for one answer at a time."""
        return [
            replace(self, horizons_steps=(steps,), intervals=self.intervals[number : number + 1])
            for number, steps in enumerate(self.horizons_steps)
        ]


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction before any array as long as the model is touched: what moves, and what is known of it.

    Attributes:
        horizon_steps: the horizon asked for.
        horizon_strides: the same in strides of the window's clock.
        moved: whether any block moves.
        blocks: reports of the first blocks.
        summary: of all blocks.
        solved: what moves them.
    """

    horizon_steps: float
    horizon_strides: float
    moved: bool
    blocks: tuple[Block, ...]
    summary: Summary
    solved: Solved


class Answering:
    """What is asked of a job's window, solved block by block. Not safe for concurrent calls."""

    def __init__(self, shape: JobShape, store: Store) -> None:
        """Answer from `store`, made for `shape`."""
        self._shape = shape
        self._operator = shape.operator
        self._store = store
        self._solver = Solver(store, shape.plan)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window."""
        return self._store.snapshots_held

    @property
    def block_count(self) -> int:
        """Blocks of the partition."""
        return self._shape.plan.block_count

    def settle(self) -> None:
        """Ends work on the window that was put off. Everything that reads the window calls it first."""

    def solve(self, operators: Sequence[Operator], question: Question) -> list[list[Answer]]:
        """Answers for each operator and horizon, from Gram matrices and the like alone.

        Args:
            operators: settings; their window, observable, partition and what else shapes the window are the job's.
            question: what is asked.

        Raises:
            FailedPrecondition: the snapshots' clock is too uneven to resample them.
        """
        self.settle()
        asked = self._horizons(question)
        return [
            [
                self._answer(solved, steps, strides + asked.offset, strides, question.most_blocks)
                for solved, steps, strides in zip(
                    self._solver.solve(settings_of(operator), asked),
                    question.horizons_steps,
                    asked.strides,
                    strict=True,
                )
            ]
            for operator in operators
        ]

    def summary(self, horizon_steps: float) -> Summary | None:
        """All blocks of the window as it is now, at that horizon; None while it holds too few snapshots.

        Whether blocks are trusted is said of as far as the back-test looks, be the horizon farther or not.
        """
        self.settle()
        if self.snapshots_held < self._operator.minimum_snapshots:
            return None
        asked = Horizons((horizon_steps / self._shape.stride,))
        (solved,) = self._solver.solve(settings_of(self._operator), asked)
        return summary_of(totals(solved.report, solved.moved, extrapolated=False))

    def reports(self, horizon_steps: float, first: int, count: int) -> tuple[Block, ...]:
        """Some blocks likewise, with their modes; empty while it holds too few snapshots."""
        self.settle()
        wanted = range(self.block_count)[first : first + count]
        if self.snapshots_held < self._operator.minimum_snapshots or not wanted:
            return ()
        strides = horizon_steps / self._shape.stride
        report, modes = self._solver.describe(settings_of(self._operator), strides, wanted)
        moves = (report.rank > 0) & ~(report.backtest_error >= 1.0) | self._operator.always_move
        return block_reports(self._shape.plan, self._shape.stride, wanted, report, moves, strides, modes)

    def _answer(self, solved: Solved, steps: float, reach: float, strides: float, most_blocks: int) -> Answer:
        extrapolated = reach > solved.report.backtest_strides
        told = range(self.block_count)[:most_blocks]
        some = torch.arange(len(told))
        return Answer(
            horizon_steps=steps,
            horizon_strides=strides,
            moved=bool(solved.moved.any()),
            blocks=block_reports(
                self._shape.plan,
                self._shape.stride,
                told,
                solved.report.take(some),
                solved.moved[some],
                reach,
            ),
            summary=summary_of(totals(solved.report, solved.moved, extrapolated=extrapolated)),
            solved=solved,
        )

    def _horizons(self, question: Question) -> Horizons:
        stride = self._shape.stride
        if not question.intervals:
            strides = tuple(steps / stride for steps in question.horizons_steps)
            return Horizons(strides, question.offset_steps / stride)
        try:
            uniform = resampling(question.clocks)
        except UnevenClockError as error:
            raise FailedPrecondition(
                f"the snapshots cannot be resampled to a uniform clock: {error}", reason="UNEVEN_CLOCK"
            ) from error
        spacing = uniform.grid_spacing
        return Horizons(
            tuple(interval / spacing for interval in question.intervals),
            question.offset_clock / spacing,
            uniform,
        )
