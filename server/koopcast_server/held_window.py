"""The device side of one job: its window, the bytes that land in it, and the answers made from it.

Part of the engine's room: with `engine` the only code that touches the device. Everything here blocks; the engine
runs it on its worker threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from koopcast.errors import DataLoss, InvalidArgument
from koopcast.operator import Operator
from koopcast.prediction import Block
from koopcast.window import Window
from koopcast.wire import (
    CHUNK_BYTES,
    ELEMENT_BYTES,
    Layout,
    TensorSpec,
    checksum,
    narrow,
    widen,
)
from koopcast_server.koopman import (
    OperatorSettings,
    Products,
    Report,
    block_bounds,
    predict,
    report,
)

__all__ = ["Answer", "HeldWindow", "narrowed_chunks", "rehearse"]

_DTYPES: Final = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction in Gram space: what to combine, and what is known of it.

    Attributes:
        horizon_steps: the horizon asked for.
        moved: whether any block moves.
        blocks: one report a block.
        velocity_coefficients: float64, (blocks, velocities).
        last_coefficients: float64, (blocks,).
    """

    horizon_steps: float
    moved: bool
    blocks: tuple[Block, ...]
    velocity_coefficients: torch.Tensor
    last_coefficients: torch.Tensor


class HeldWindow:
    """The device side of one job. Not safe for concurrent calls: the job's lock serialises them."""

    def __init__(
        self, layout: Layout, operator: Operator, stride: int, window_dtype: str, device: torch.device
    ) -> None:
        """Allocate the ring, the spare slot and the Gram matrices."""
        names, bounds = _blocks(layout, operator)
        self._names = names
        self._bounds = bounds
        self._layout = layout
        self._operator = operator
        self._stride = stride
        self._dtype = layout.storage_dtype
        self._window = Window(
            bounds,
            operator.window,
            snapshot_dtype=_DTYPES[self._dtype],
            window_dtype=_DTYPES[window_dtype],
            device=device,
        )

    @staticmethod
    def bytes_needed(layout: Layout, operator: Operator, window_dtype: str) -> int:
        """Device memory of a job: the window, and one answer under way. Unit: bytes."""
        _, bounds = _blocks(layout, operator)
        stored = layout.storage_dtype
        window = Window.bytes_needed(
            layout.elements,
            operator.window,
            snapshot_dtype=_DTYPES[stored],
            window_dtype=_DTYPES[window_dtype],
            block_count=len(bounds) - 1,
        )
        return window + layout.elements * ELEMENT_BYTES[stored]

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window."""
        return self._window.snapshots_held

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
        self._window = Window([0, 1], 2, snapshot_dtype=torch.float32, window_dtype=torch.float32)

    def solve(
        self, operators: Sequence[Operator], horizons: Sequence[float], offset_steps: float
    ) -> list[list[Answer]]:
        """Answers for each operator and horizon, from the Gram matrices alone.

        Args:
            operators: settings; their window, observable and partition are the job's.
            horizons: trainer steps ahead.
            offset_steps: from the time of the last snapshot to where the displacement starts, in trainer steps.
        """
        products = self._products()
        answers = []
        for operator in operators:
            batch = predict(
                products,
                _settings(operator),
                [horizon / self._stride for horizon in horizons],
                offset_steps / self._stride,
            )
            answers.append(
                [
                    Answer(
                        horizon_steps=horizon,
                        moved=bool(batch.moved[index].any()),
                        blocks=tuple(self._blocks(batch.report, batch.moved[index], offset_steps + horizon)),
                        velocity_coefficients=batch.velocity_coefficients[index],
                        last_coefficients=batch.last_coefficients[index],
                    )
                    for index, horizon in enumerate(horizons)
                ]
            )
        return answers

    def reports(self) -> tuple[Block, ...]:
        """The job's operators on the window as it is now; empty while it holds too few snapshots."""
        if self.snapshots_held < self._operator.minimum_snapshots:
            return ()
        current = report(self._products(), _settings(self._operator))
        would_move = (current.rank > 0) & ~(current.backtest_error >= 1.0)
        return tuple(self._blocks(current, would_move, 0.0))

    def displacement(self, answer: Answer) -> torch.Tensor:
        """The answer's displacement, all tensors flat, on the CPU in the storage type."""
        out = torch.empty(self._layout.elements, dtype=_DTYPES[self._dtype], device=self._window.device)
        self._window.combine(answer.velocity_coefficients, answer.last_coefficients, out)
        return out.cpu()

    def base(self) -> torch.Tensor:
        """A copy of the last snapshot, flat, on the CPU in the storage type."""
        return self._window.last.to("cpu", copy=True)

    def _products(self) -> Products:
        return Products(*self._window.products())

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

    def _blocks(self, current: Report, moves: torch.Tensor, horizon_steps: float) -> Iterator[Block]:
        backtest_steps = current.backtest_strides * self._stride
        ranks, moved = current.rank.tolist(), moves.tolist()
        radii, residuals = current.spectral_radius.tolist(), current.residual.tolist()
        errors, linear = current.backtest_error.tolist(), current.backtest_error_linear.tolist()
        eigenvalues = current.eigenvalues.tolist()
        for index, name in enumerate(self._names):
            yield Block(
                name=name,
                parameters=self._bounds[index + 1] - self._bounds[index],
                rank=ranks[index],
                spectral_radius=radii[index],
                residual=residuals[index],
                backtest_error=errors[index],
                backtest_error_linear=linear[index],
                backtest_steps=backtest_steps if not math.isnan(errors[index]) else 0,
                moved=moved[index],
                extrapolated=horizon_steps > backtest_steps,
                eigenvalues=tuple(eigenvalues[index][: ranks[index]]),
            )


def rehearse(device: torch.device) -> None:
    """Runs a tiny job through every step once, so that lazy loading in libraries does not delay the first real one."""
    layout = Layout({"rehearsal": TensorSpec("float32", (8,))})
    for observable in ("velocity", "state"):
        operator = Operator(observable=observable, window=5)
        held = HeldWindow(layout, operator, 1, "float32", device)
        for index in range(5):
            data = (0.9**index * np.arange(1.0, 9.0)).astype(np.float32).tobytes()
            held.land(0, data, checksum(data))
            held.publish(starts_segment=index == 0)
        for answer in held.solve([operator], [1.5], 0.0)[0]:
            list(narrowed_chunks(held.displacement(answer), "bfloat16"))
        held.reports()


def narrowed_chunks(flat: torch.Tensor, wire_dtype: str) -> Iterator[tuple[int, bytes]]:
    """(byte offset, bytes) of a flat CPU tensor in the wire type, at most CHUNK_BYTES each."""
    width = ELEMENT_BYTES[wire_dtype]
    values = flat.numpy()
    step = CHUNK_BYTES // width
    for start in range(0, len(values), step):
        data = narrow(values[start : start + step], wire_dtype)
        yield start * width, data.tobytes()


def _blocks(layout: Layout, operator: Operator) -> tuple[Sequence[str], Sequence[int]]:
    sizes = {name: spec.elements for name, spec in layout.specs.items()}
    return block_bounds(sizes, operator.partition)


def _settings(operator: Operator) -> OperatorSettings:
    return OperatorSettings(
        observable=operator.observable,
        rank_rule="fixed" if isinstance(operator.rank, int) else operator.rank,
        rank=operator.rank if isinstance(operator.rank, int) else 1,
        energy=operator.energy,
        ridge=operator.ridge,
        stabilize=operator.stabilize,
    )
