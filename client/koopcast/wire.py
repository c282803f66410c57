"""Tensors to bytes and back: element types, the layout of a snapshot, chunks and checksums.

A snapshot on the wire is its tensors one after the other, in the order of the job's spec, row-major and
little-endian. Neighbouring tensors of one element type form a *run*; a chunk lies within one run and holds whole
elements, so that a receiver can convert it without looking at its neighbours.

bfloat16 has no NumPy type: its bits travel in, and are widened from, uint16.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from koopcast.checksums import checksum, combine
from koopcast.tensors import (
    ELEMENT_BYTES,
    Bytes,
    TensorSpec,
    check_tensors,
    describe,
    flat_bytes,
    flat_view,
)

__all__ = [
    "ACK_BYTES",
    "CHUNK_BYTES",
    "ELEMENT_BYTES",
    "UNACKNOWLEDGED_BYTES",
    "Bytes",
    "Floats",
    "Layout",
    "Run",
    "TensorSpec",
    "checksum",
    "combine",
    "describe",
    "flat_bytes",
    "flat_view",
    "narrow",
    "storage_dtype",
    "widen",
]

CHUNK_BYTES: Final = 1 << 20
"""Bytes of data in a chunk (1 to 2 MiB is fastest; larger is always slower)."""
ACK_BYTES: Final = 16 << 20
"""The receiver acknowledges after so many bytes."""
UNACKNOWLEDGED_BYTES: Final = 64 << 20
"""The sender pauses when so many bytes are under way."""

Floats = npt.NDArray[np.floating[Any]]

_BITS: Final[Mapping[str, np.dtype[Any]]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tensors of one element type: a range of bytes and the range of elements it stands for."""

    dtype: str
    first_byte: int
    first_element: int
    elements: int

    @property
    def end_byte(self) -> int:
        """One past the last byte."""
        return self.first_byte + self.elements * ELEMENT_BYTES[self.dtype]


class Layout:
    """Where each tensor of a snapshot lies, in elements and in bytes.

    Attributes:
        specs: name to TensorSpec, in order.
        element_bounds: where each tensor's elements begin, and where the last one's end.
        byte_bounds: the same in bytes.
        elements: elements of all tensors together.
        nbytes: bytes of all tensors together.
        runs: the runs, in order.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        """Lay the tensors of `specs` out one after the other."""
        self.specs = dict(specs)
        sizes = [spec.elements for spec in self.specs.values()]
        self.element_bounds = tuple(itertools.accumulate(sizes, initial=0))  # exact, however large
        lengths = [spec.nbytes for spec in self.specs.values()]
        self.byte_bounds = tuple(itertools.accumulate(lengths, initial=0))
        self.elements = self.element_bounds[-1]
        self.runs = tuple(_runs(self.specs.values(), self.element_bounds))
        self.nbytes = self.runs[-1].end_byte if self.runs else 0
        self._run_ends = [run.end_byte for run in self.runs]

    @property
    def storage_dtype(self) -> str:
        """The type its snapshots are kept in."""
        return storage_dtype([spec.dtype for spec in self.specs.values()])

    def pack(self, arrays: Mapping[str, Any]) -> Bytes:
        """Copies `arrays` into one new buffer, after checking names, types and shapes.

        Raises:
            ArgumentValueError: a missing or extra tensor, another shape or type than in the spec.
        """
        self.check(arrays)
        packed = np.empty(self.nbytes, np.uint8)
        for name, (start, stop) in zip(self.specs, pairwise(self.byte_bounds), strict=True):
            packed[start:stop] = flat_bytes(name, arrays[name])
        return packed

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Compares names, types and shapes of some arrays with the specs; raises as `check_tensors`."""
        check_tensors(self.specs, arrays)

    def chunk_ranges(self, start: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
        """Byte ranges [start, stop) of the chunks, in order; none crosses the end of a run.

        Args:
            start: where the first one begins, at the border of an element.
            chunk_bytes: bytes in a chunk at most, a multiple of 8.
        """
        for run in self.runs[bisect.bisect_right(self._run_ends, start) :]:
            for first in range(max(start, run.first_byte), run.end_byte, chunk_bytes):
                yield first, min(first + chunk_bytes, run.end_byte)

    def run_of(self, first_byte: int, byte_count: int) -> Run | None:
        """The run that holds the byte range as whole elements, or None where no run does."""
        position = bisect.bisect_right(self._run_ends, first_byte)
        if position == len(self.runs) or first_byte < 0 or byte_count < 1:
            return None
        run = self.runs[position]
        width = ELEMENT_BYTES[run.dtype]
        aligned = (first_byte - run.first_byte) % width == 0 and byte_count % width == 0
        return run if aligned and first_byte + byte_count <= run.end_byte else None

    def name_at(self, element: int) -> str:
        """Name of the tensor that holds the flat element index."""
        position = int(np.searchsorted(self.element_bounds, element, side="right")) - 1
        return list(self.specs)[position]

    def split(self, flat: Floats) -> dict[str, Floats]:
        """Views of a flat array of `elements` values, by name, in their shapes."""
        return {
            name: flat[start:stop].reshape(spec.shape)
            for (name, spec), (start, stop) in zip(
                self.specs.items(), pairwise(self.element_bounds), strict=True
            )
        }

    def unpack(self, packed: Bytes, dtype: str) -> Floats:
        """The packed snapshot as one flat array of `dtype` (float32 or float64)."""
        flat = np.empty(self.elements, _BITS[dtype])
        for run in self.runs:
            data = packed[run.first_byte : run.end_byte]
            flat[run.first_element : run.first_element + run.elements] = widen(data, run.dtype)
        return flat


def storage_dtype(dtypes: Sequence[str]) -> str:
    """The type snapshots are kept in: float64 where any tensor is, float32 otherwise (half precision widens)."""
    return "float64" if "float64" in dtypes else "float32"


def widen(data: bytes | memoryview | Bytes, dtype: str) -> Floats:
    """Bytes of `dtype` as an array that NumPy can compute with; bfloat16 becomes float32. Copies only if it must."""
    bits = np.frombuffer(data, _BITS[dtype])
    if dtype == "bfloat16":
        wide: Floats = (bits.astype(np.uint32) << 16).view(np.float32)
        return wide
    return bits


def narrow(values: Floats, dtype: str) -> Bytes:
    """A float array as bytes of `dtype`; bfloat16 is rounded to nearest, ties to even. Non-finite stays so."""
    if dtype == "bfloat16":
        single = np.ascontiguousarray(values, np.float32)
        wide = single.view(np.uint32)
        rounded = wide >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += wide  # infinity has no bits there that could carry
        rounded >>= 16
        missing = np.isnan(single)
        if missing.any():
            rounded[missing] = wide[missing] >> 16 | 0x40
        return rounded.astype("<u2").view(np.uint8)
    return np.ascontiguousarray(values, _BITS[dtype]).view(np.uint8)


def _runs(specs: Any, bounds: Sequence[int]) -> Iterator[Run]:
    current: Run | None = None
    for spec, first_element in zip(specs, bounds, strict=False):
        if current is not None and current.dtype == spec.dtype:
            current = Run(
                spec.dtype, current.first_byte, current.first_element, current.elements + spec.elements
            )
            continue
        if current is not None:
            yield current
        current = Run(spec.dtype, current.end_byte if current else 0, first_element, spec.elements)
    if current is not None:
        yield current
