"""Tensors to bytes and back: element types, the layout of a snapshot, chunks and checksums.

A snapshot on the wire is its tensors one after the other, in the order of the job's spec, row-major and
little-endian. Neighbouring tensors of one element type form a *run*; a chunk lies within one run and holds whole
elements, so that a receiver can convert it without looking at its neighbours.

bfloat16 has no NumPy type: its bits travel in, and are widened from, uint16.
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import crc32c as _crc32c
import numpy as np
import numpy.typing as npt

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "ACK_BYTES",
    "CHUNK_BYTES",
    "ELEMENT_BYTES",
    "UNACKNOWLEDGED_BYTES",
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

ELEMENT_BYTES: Final[Mapping[str, int]] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Supported element types and their width in bytes."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_BITS: Final[Mapping[str, np.dtype[Any]]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Element type and shape of one tensor, for jobs opened before the arrays exist.

    Attributes:
        dtype: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        shape: sizes of the dimensions, each at least 1; empty for a scalar.
        node_of: for node partitions, name of the matrix whose units this vector's entries belong to, entry i to unit
            i. Empty: found by name, see `koopcast.partition`.
        node_axis: for node partitions, the axis of `shape` that counts the units of a matrix. None: 0.
    """

    dtype: str
    shape: tuple[int, ...]
    node_of: str = ""
    node_axis: int | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.elements * ELEMENT_BYTES[self.dtype]


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
        """Compares names, types and shapes of some arrays with the specs.

        Raises:
            ArgumentValueError: a missing or extra tensor, another shape or type than in the spec.
            ArgumentTypeError: something that is no array, or has no values.
        """
        _same_names(self.specs, arrays)
        for name, spec in self.specs.items():
            array = arrays[name]
            if isinstance(array, TensorSpec):
                raise ArgumentTypeError(f"tensor {name!r}: a spec holds no values to push", field=name)
            _same_kind(name, spec, describe(name, array))

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


def describe(name: str, array: Any) -> TensorSpec:
    """Element type and shape of a NumPy array, a torch tensor or a TensorSpec, which keeps its units too.

    Raises:
        ArgumentTypeError: something that is no array.
        ArgumentValueError: an element type that koopcast does not take, no elements, or an axis that is not there.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a tensor's name must be a string, not {name!r}", field="tensors")
    if isinstance(array, TensorSpec):
        spec = TensorSpec(array.dtype, tuple(array.shape), array.node_of, array.node_axis)
        _check_units(name, spec)
    elif hasattr(array, "dtype") and hasattr(array, "shape"):
        dtype = getattr(array.dtype, "name", None) or str(array.dtype).removeprefix("torch.")
        spec = TensorSpec(dtype, tuple(int(size) for size in array.shape))
    else:
        raise ArgumentTypeError(
            f"tensor {name!r} must be a NumPy array, a torch tensor or a TensorSpec, not {type(array).__name__}",
            field=name,
        )
    if spec.dtype not in ELEMENT_BYTES:
        allowed = ", ".join(ELEMENT_BYTES)
        raise ArgumentValueError(
            f"tensor {name!r} has dtype {spec.dtype}; koopcast takes {allowed}", field=name, dtype=spec.dtype
        )
    if any(size < 0 for size in spec.shape):
        raise ArgumentValueError(f"tensor {name!r} has a negative dimension: {spec.shape}", field=name)
    if spec.elements == 0:
        raise ArgumentValueError(f"tensor {name!r} of shape {spec.shape} has no elements", field=name)
    return spec


def flat_bytes(name: str, array: Any) -> Bytes:
    """The bytes of an array or a torch tensor as they travel. A view where they lie so in memory, else a copy."""
    view = flat_view(array)
    if view is not None:
        return view
    torch: Any = sys.modules.get("torch")
    dense = array.detach().cpu().contiguous() if _is_torch(array, torch) else np.ascontiguousarray(array)
    if isinstance(dense, np.ndarray) and dense.dtype.name != "bfloat16":
        dense = dense.astype(dense.dtype.newbyteorder("<"), copy=False)
    view = flat_view(dense)
    if view is None:
        raise ArgumentTypeError(f"tensor {name!r} cannot be read as an array", field=name)
    return view


def flat_view(array: Any) -> Bytes | None:
    """The memory of a dense little-endian array, or torch tensor on the CPU, as bytes; None of any other."""
    torch: Any = sys.modules.get("torch")
    if _is_torch(array, torch):
        if array.device.type != "cpu" or not array.is_contiguous():
            return None
        bits: npt.NDArray[Any] = array.detach().reshape(-1).view(torch.uint8).numpy()
        return bits
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return None
    order = array.dtype.byteorder
    is_big = order == ">" or (order == "=" and sys.byteorder == "big")
    return None if is_big else array.reshape(-1).view(np.uint8)


def _is_torch(array: Any, torch: Any) -> bool:
    return torch is not None and isinstance(array, torch.Tensor)


def checksum(data: Any, previous: int = 0) -> int:
    """crc32c of a buffer, continued from `previous`."""
    return int(_crc32c.crc32c(data, previous))


def combine(crc32c: int, following: int, following_bytes: int) -> int:
    """crc32c of two stretches of bytes one after the other, from the checksums of each.

    A checksum is a polynomial over GF(2); the bytes that follow multiply it by a power of x (as zlib's crc32_combine).

    Args:
        crc32c: of the first stretch.
        following: of the second one.
        following_bytes: length of the second one.
    """
    return _times(_shift(following_bytes), crc32c) ^ following


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
        wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = wide + (((wide >> 16) & 1) + 0x7FFF)
        rounded = np.where(np.isfinite(values), rounded, wide)
        return (rounded >> 16).astype("<u2").view(np.uint8)
    return np.ascontiguousarray(values, _BITS[dtype]).view(np.uint8)


_POLYNOMIAL: Final = 0x82F63B78
"""Of crc32c, the lowest power in the highest bit."""


def _times(one: int, other: int) -> int:
    """The product of two polynomials, modulo that of crc32c."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache(maxsize=64)
def _shift(byte_count: int) -> int:
    """The power of x that so many bytes are: nearly all chunks have one length."""
    power, square = 1 << 31, 1 << 23  # 1, and x to the 8th
    while byte_count:
        if byte_count & 1:
            power = _times(square, power)
        square = _times(square, square)
        byte_count >>= 1
    return power


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


def _check_units(name: str, spec: TensorSpec) -> None:
    if not isinstance(spec.node_of, str):
        raise ArgumentTypeError(f"tensor {name!r}: node_of must be a name, not {spec.node_of!r}", field=name)
    axis = spec.node_axis
    if axis is None:
        return
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise ArgumentTypeError(f"tensor {name!r}: node_axis must be an axis, not {axis!r}", field=name)
    if not 0 <= axis < len(spec.shape):
        raise ArgumentValueError(
            f"tensor {name!r} of shape {spec.shape} has no axis {axis} (node_axis)", field=name
        )


def _same_names(specs: Mapping[str, TensorSpec], arrays: Mapping[str, Any]) -> None:
    missing = [name for name in specs if name not in arrays]
    extra = [name for name in arrays if name not in specs]
    if missing or extra:
        parts = [f"missing {', '.join(map(repr, missing[:5]))}"] if missing else []
        parts += [f"not in the job {', '.join(map(repr, extra[:5]))}"] if extra else []
        raise ArgumentValueError(
            f"the snapshot's tensors are not the job's: {'; '.join(parts)}",
            field=(missing or extra)[0],
            missing=len(missing),
            extra=len(extra),
        )


def _same_kind(name: str, spec: TensorSpec, given: TensorSpec) -> None:
    if given.shape != spec.shape:
        raise ArgumentValueError(
            f"tensor {name!r} has shape {given.shape}; the job was opened with {spec.shape}",
            field=name,
            given=given.shape,
            expected=spec.shape,
        )
    if given.dtype != spec.dtype:
        raise ArgumentValueError(
            f"tensor {name!r} has dtype {given.dtype}; the job was opened with {spec.dtype}",
            field=name,
            given=given.dtype,
            expected=spec.dtype,
        )
