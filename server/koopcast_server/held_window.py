"""The device side of one job: its window, the bytes that land in it, and the answers made from it.

Part of the engine's room: with `engine` and `solving` the only code that touches the device. Everything here blocks;
the engine runs it on its worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from koopcast.encoding import DifferenceCode, advance
from koopcast.errors import DataLoss, InvalidArgument
from koopcast.operator import Operator
from koopcast.window import Window
from koopcast.window.mask import mask_by_last_change_
from koopcast.wire import (
    CHUNK_BYTES,
    ELEMENT_BYTES,
    Layout,
    TensorSpec,
    checksum,
    narrow,
    widen,
)
from koopcast_server.answering import Answer, Answering, Question
from koopcast_server.solving import Solver
from koopcast_server.window_shape import DTYPES, JobShape

__all__ = ["HeldWindow", "narrowed_chunks", "rehearse"]


class HeldWindow(Answering):
    """The device side of one job. Not safe for concurrent calls: the job's lock serialises them."""

    def __init__(self, shape: JobShape, device: torch.device) -> None:
        """Allocate the ring, the spare slot and the Gram matrices (or the R factors of a whole segment)."""
        self._layout = shape.layout
        self._dtype = shape.layout.storage_dtype
        self._window = shape.new_store(device)
        self._unsettled = self._starts_segment = False
        super().__init__(shape, self._window)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window: published ones, whether or not their Gram row was made already."""
        held = self._window.snapshots_held
        if not self._unsettled:
            return held
        after = 1 if self._starts_segment else held + 1
        return min(after, self._window.length) if isinstance(self._window, Window) else after

    @property
    def takes_at_once(self) -> bool:
        """Whether a short chunk lands in microseconds: nothing was put off, and the memory is the CPU's."""
        return not self._unsettled and self._window.device.type == "cpu"

    def land(
        self, offset: int, data: bytes | memoryview, crc32c: int, code: DifferenceCode | None = None
    ) -> None:
        """Checks a chunk and writes it into the spare slot.

        Args:
            offset: of its first byte among all bytes of the snapshot, as encoded.
            data: its bytes.
            crc32c: their checksum.
            code: of the differences from the last snapshot that they are; None: they are elements.

        Raises:
            DataLoss: its checksum does not match.
            InvalidArgument: it crosses tensors of different types, splits an element or a block of differences, or is
                not finite.
        """
        self.settle()  # the spare slot may still be the newest snapshot's
        self._refuse_changed(offset, data, crc32c)
        if code is not None:
            self._land_differences(offset, data, code)
            return
        first, values = self._decoded(offset, data)
        self._refuse_non_finite(values, first)
        spare = self._window.spare[first : first + len(values)]
        if spare.device.type == "cpu":
            spare.numpy()[:] = values
        else:
            spare.copy_(torch.from_numpy(values.astype(self._dtype)))

    def land_from(
        self,
        fill: Callable[[memoryview], None],
        offset: int,
        nbytes: int,
        crc32c: int,
        code: DifferenceCode | None,
    ) -> None:
        """Lets a chunk be written to where it belongs, and checks it there; it counts only when this returns.

        Args:
            fill: writes the bytes of the chunk into a buffer as long as they are; may raise.
            offset: see `land`.
            nbytes: how many bytes.
            crc32c: see `land`.
            code: see `land`.

        Raises:
            DataLoss, InvalidArgument: see `land`.
        """
        self.settle()
        place = self._place(offset, nbytes) if code is None else None
        if place is None:
            buffer = np.empty(nbytes, np.uint8).data
            fill(buffer)
            self.land(offset, buffer, crc32c, code)
            return
        first, values = place
        data = values.view(np.uint8).data
        fill(data)
        self._refuse_changed(offset, data, crc32c)
        self._refuse_non_finite(values, first)

    def _place(self, offset: int, nbytes: int) -> tuple[int, npt.NDArray[Any]] | None:
        """First element of a raw chunk, and the part of the spare slot that holds the same bytes; None where none does."""
        run, spare = self._layout.run_of(offset, nbytes), self._window.spare
        if run is None or spare.device.type != "cpu" or spare.dtype != DTYPES[run.dtype]:
            return None
        width = ELEMENT_BYTES[run.dtype]
        first = run.first_element + (offset - run.first_byte) // width
        return first, spare[first : first + nbytes // width].numpy()

    def _refuse_changed(self, offset: int, data: bytes | memoryview, crc32c: int) -> None:
        if checksum(data) != crc32c:
            raise DataLoss(
                f"the chunk at byte {offset} arrived changed: its crc32c does not match; push the snapshot again",
                reason="CHECKSUM_MISMATCH",
                offset=offset,
            )

    def _land_differences(self, offset: int, data: bytes | memoryview, code: DifferenceCode) -> None:
        """Writes the last snapshot plus these differences, as `koopcast.encoding.advance` adds them up."""
        elements = code.elements_of(offset, offset + len(data))
        if elements is None:
            raise InvalidArgument(
                f"the chunk at byte {offset} does not hold whole {'elements' if code.encoding == 'delta' else 'blocks'}",
                field="offset",
            )
        bad = code.first_non_finite(data)
        differences = code.decode(data)
        if bad is not None:
            self._refuse_non_finite(differences[bad:], elements[0] + bad)
        here = slice(*elements)
        last, spare = self._window.last[here], self._window.spare[here]
        if spare.device.type == "cpu":
            advance(last.numpy(), differences, spare.numpy())
            return
        largest = torch.finfo(spare.dtype).max
        torch.add(last, torch.tensor(differences, device=spare.device), out=spare).clamp_(-largest, largest)

    def publish(self, *, starts_segment: bool) -> None:
        """Makes the landed snapshot the newest one, of a window that it empties where it starts a segment.

        It counts at once; `settle` does the work, which every other method waits for.
        """
        self.settle()
        self._unsettled, self._starts_segment = True, starts_segment

    def settle(self) -> None:
        """Stores the velocity of the newest snapshot and makes its Gram row, unless that was done.

        Should it raise (no memory for scratch), the snapshot is as it was, and the next call tries again.
        """
        if not self._unsettled:
            return
        if self._starts_segment:
            self._window.clear()
            self._starts_segment = False
        self._window.publish()
        self._unsettled = False

    def free(self) -> None:
        """Gives the device memory back, whoever still refers to this object; no snapshot is held any more."""
        layout = Layout({"freed": TensorSpec("float32", (1,))})
        shape = JobShape.of(layout, Operator(window=3), 1, "float32")
        self._unsettled = False
        self._store = self._window = shape.new_store(torch.device("cpu"))
        self._solver = Solver(self._window, shape.plan)

    def displacement(self, answer: Answer) -> torch.Tensor:
        """The answer's displacement, all tensors flat, on the CPU in the storage type."""
        self.settle()
        out = self._new_array()
        self._solver.write(answer.solved, out)
        if self._operator.mask_tolerance is not None:
            mask_by_last_change_(out, self._window, self._operator.mask_tolerance, answer.horizon_strides)
        return out.cpu()

    def base(self) -> torch.Tensor:
        """A copy of the last snapshot, flat, on the CPU in the storage type."""
        self.settle()
        if self._window.device.type != "cpu":
            return self._window.last.to("cpu", copy=True)
        return self._new_array().copy_(self._window.last)

    def _new_array(self) -> torch.Tensor:
        """An array as long as a snapshot, in the storage type, on the device."""
        if self._window.device.type != "cpu":
            return torch.empty(self._layout.elements, dtype=DTYPES[self._dtype], device=self._window.device)
        # NumPy asks the system for large pages, torch does not: memory is there three times as fast.
        return torch.from_numpy(np.empty(self._layout.elements, self._dtype))

    def _decoded(self, offset: int, data: bytes | memoryview) -> tuple[int, npt.NDArray[Any]]:
        """A raw chunk's first element and its values, of the type they were pushed in.

        Raises:
            InvalidArgument: no whole elements of tensors of one type.
        """
        run = self._layout.run_of(offset, len(data))
        if run is None:
            raise InvalidArgument(
                f"the chunk at byte {offset} does not hold whole elements of tensors of one type",
                field="offset",
            )
        first = run.first_element + (offset - run.first_byte) // ELEMENT_BYTES[run.dtype]
        return first, widen(data, run.dtype)

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
