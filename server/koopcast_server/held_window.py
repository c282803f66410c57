"""The device side of one job: its window, the bytes that land in it, and the answers made from it.

Part of the engine's room: with `engine` and `solving` the only code that touches the device. Everything here blocks;
the engine runs it on its worker threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from koopcast.errors import DataLoss, FailedPrecondition, InvalidArgument
from koopcast.operator import Operator
from koopcast.prediction import Block, Summary
from koopcast.wire import (
    CHUNK_BYTES,
    ELEMENT_BYTES,
    Layout,
    TensorSpec,
    checksum,
    narrow,
    widen,
)
from koopcast_server.koopman import UnevenClockError, mask_displacement_, resampling, totals
from koopcast_server.solving import Horizons, Solved, Solver
from koopcast_server.telling import block_reports, settings_of, summary_of
from koopcast_server.window_shape import DTYPES, JobShape

__all__ = ["Answer", "HeldWindow", "Question", "narrowed_chunks", "rehearse"]

_MASKED_AT_ONCE: Final = 1 << 20
"""Elements of a displacement that are masked at a time."""


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


class HeldWindow:
    """The device side of one job. Not safe for concurrent calls: the job's lock serialises them."""

    def __init__(self, shape: JobShape, device: torch.device) -> None:
        """Allocate the ring, the spare slot and the Gram matrices (or the R factors of a whole segment)."""
        self._shape = shape
        self._layout = shape.layout
        self._operator = shape.operator
        self._dtype = shape.layout.storage_dtype
        self._window = shape.new_store(device)
        self._solver = Solver(self._window, shape.plan)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window."""
        return self._window.snapshots_held

    @property
    def block_count(self) -> int:
        """Blocks of the partition."""
        return self._shape.plan.block_count

    def land(self, offset: int, data: bytes, crc32c: int) -> None:
        """Checks a chunk and writes it into the spare slot.

        Raises:
            DataLoss: its checksum does not match.
            InvalidArgument: it crosses tensors of different types or splits an element, or is not finite.
        """
        if checksum(data) != crc32c:
            raise DataLoss(
                f"the chunk at byte {offset} arrived changed: its crc32c does not match; push the snapshot again",
                reason="CHECKSUM_MISMATCH",
                offset=offset,
            )
        run = self._layout.run_of(offset, len(data))
        if run is None:
            raise InvalidArgument(
                f"the chunk at byte {offset} does not hold whole elements of tensors of one type",
                field="offset",
            )
        values = widen(data, run.dtype)
        first = run.first_element + (offset - run.first_byte) // ELEMENT_BYTES[run.dtype]
        self._refuse_non_finite(values, first)
        spare = self._window.spare[first : first + len(values)]
        if spare.device.type == "cpu":
            spare.numpy()[:] = values
        else:
            spare.copy_(torch.from_numpy(values.astype(self._dtype)))

    def publish(self, *, starts_segment: bool) -> None:
        """Makes the landed snapshot the newest one; empties the window first where it starts a segment."""
        if starts_segment:
            self._window.clear()
        self._window.publish()

    def free(self) -> None:
        """Gives the device memory back, whoever still refers to this object; no snapshot is held any more."""
        layout = Layout({"freed": TensorSpec("float32", (1,))})
        shape = JobShape.of(layout, Operator(window=3), 1, "float32")
        self._window = shape.new_store(torch.device("cpu"))
        self._solver = Solver(self._window, shape.plan)

    def solve(self, operators: Sequence[Operator], question: Question) -> list[list[Answer]]:
        """Answers for each operator and horizon, from Gram matrices and the like alone.

        Args:
            operators: settings; their window, observable, partition and what else shapes the window are the job's.
            question: what is asked.

        Raises:
            FailedPrecondition: the snapshots' clock is too uneven to resample them.
        """
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
        if self.snapshots_held < self._operator.minimum_snapshots:
            return None
        asked = Horizons((horizon_steps / self._shape.stride,))
        (solved,) = self._solver.solve(settings_of(self._operator), asked)
        return summary_of(totals(solved.report, solved.moved, extrapolated=False))

    def reports(self, horizon_steps: float, first: int, count: int) -> tuple[Block, ...]:
        """Some blocks likewise, with their modes; empty while it holds too few snapshots."""
        wanted = range(self.block_count)[first : first + count]
        if self.snapshots_held < self._operator.minimum_snapshots or not wanted:
            return ()
        strides = horizon_steps / self._shape.stride
        report, modes = self._solver.describe(settings_of(self._operator), strides, wanted)
        moves = (report.rank > 0) & ~(report.backtest_error >= 1.0) | self._operator.always_move
        return block_reports(self._shape.plan, self._shape.stride, wanted, report, moves, strides, modes)

    def displacement(self, answer: Answer) -> torch.Tensor:
        """The answer's displacement, all tensors flat, on the CPU in the storage type."""
        out = torch.empty(self._layout.elements, dtype=DTYPES[self._dtype], device=self._window.device)
        self._solver.write(answer.solved, out)
        if self._operator.mask_tolerance is not None:
            for start in range(0, len(out), _MASKED_AT_ONCE):
                some = out[start : start + _MASKED_AT_ONCE]
                change = self._window.read_last_velocity(start, start + len(some)).to(out.dtype)
                mask_displacement_(some, change, self._operator.mask_tolerance, answer.horizon_strides)
        return out.cpu()

    def base(self) -> torch.Tensor:
        """A copy of the last snapshot, flat, on the CPU in the storage type."""
        return self._window.last.to("cpu", copy=True)

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

    def _refuse_non_finite(self, values: npt.NDArray[Any], first_element: int) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        bad = int(np.argmin(finite))
        name = self._layout.name_at(first_element + bad)
        position = list(self._layout.specs).index(name)
        index = first_element + bad - self._layout.element_bounds[position]
        raise InvalidArgument(
            f"tensor {name!r} holds {values[bad]} at flat index {index}; snapshots must be finite",
            reason="NON_FINITE",
            field=name,
            index=index,
            value=values[bad],
        )


def rehearse(device: torch.device) -> None:
    """Runs a tiny job through every step once, so that lazy loading in libraries does not delay the first real one."""
    layout = Layout({"rehearsal": TensorSpec("float32", (8,))})
    for observable in ("velocity", "state"):
        operator = Operator(observable=observable, window=5)
        held = HeldWindow(JobShape.of(layout, operator, 1, "float32"), device)
        for index in range(5):
            data = (0.9**index * np.arange(1.0, 9.0)).astype(np.float32).tobytes()
            held.land(0, data, checksum(data))
            held.publish(starts_segment=index == 0)
        for answer in held.solve([operator], Question((1.5,), 0.0))[0]:
            list(narrowed_chunks(held.displacement(answer), "bfloat16"))
        held.reports(1.0, 0, 1)


def narrowed_chunks(flat: torch.Tensor, wire_dtype: str) -> Iterator[tuple[int, bytes]]:
    """(byte offset, bytes) of a flat CPU tensor in the wire type, at most CHUNK_BYTES each."""
    width = ELEMENT_BYTES[wire_dtype]
    values = flat.numpy()
    step = CHUNK_BYTES // width
    for start in range(0, len(values), step):
        data = narrow(values[start : start + step], wire_dtype)
        yield start * width, data.tobytes()
