"""Snapshots as differences from the last one: fewer bytes, at an error that the next snapshot makes good.

A difference is taken from what the service holds (the *reference*), not from what was pushed last, so that what one
encoding loses is part of the next difference: errors do not add up. Both sides compute the new snapshot as
`advance` does, with the same additions in the same type, and so hold the same bits.

``"delta"`` sends each difference in the job's wire dtype. ``"delta-int8"`` cuts the flat snapshot into blocks of 256
elements and sends a float32 scale for each, the largest difference / 127, and a signed byte for each element; a chunk
holds the scales of its blocks first, then the bytes.

Differences too large for a type are clipped to its largest number, and so is what `advance` adds up: what is decoded
from finite input is finite, and the next difference brings the rest. Differences too small for it become zero, until
they have grown: float16 has nothing below 3e-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from koopcast.errors import ArgumentValueError
from koopcast.wire import CHUNK_BYTES, ELEMENT_BYTES, Bytes, Floats, Layout, narrow, widen

__all__ = [
    "BLOCK_ELEMENTS",
    "ENCODINGS",
    "PIECE_ELEMENTS",
    "DifferenceCode",
    "EncodingName",
    "advance",
    "check_encoding",
]

EncodingName = Literal["raw", "delta", "delta-int8"]
ENCODINGS: Final[tuple[EncodingName, ...]] = ("raw", "delta", "delta-int8")
"""How a job's snapshots may be encoded."""

BLOCK_ELEMENTS: Final = 256
"""Elements that share a scale; the last block of a snapshot may have fewer."""
_SCALE_BYTES: Final = 4
_BLOCK_BYTES: Final = BLOCK_ELEMENTS + _SCALE_BYTES
_LARGEST_BYTE: Final = 127.0
PIECE_ELEMENTS: Final = 128 * BLOCK_ELEMENTS
"""Elements to encode at a time, so that what is in between stays in the cache."""

_LARGEST: Final = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "bfloat16": float(np.uint32(0x7F7F0000).view(np.float32)),
    "float16": float(np.finfo(np.float16).max),
}
"""The largest finite number of each element type."""


@dataclass(frozen=True, slots=True)
class DifferenceCode:
    """How the differences of one job's snapshots become bytes, and bytes differences.

    Attributes:
        encoding: ``"delta"`` or ``"delta-int8"``.
        wire_dtype: element type of ``"delta"``.
        storage_dtype: what snapshots are kept in, and differences are made in: float32 or float64.
        elements: n, of the flat snapshot.
    """

    encoding: EncodingName
    wire_dtype: str
    storage_dtype: str
    elements: int

    @classmethod
    def of(cls, layout: Layout, encoding: EncodingName, wire_dtype: str) -> DifferenceCode | None:
        """The code of a job's differences; None for ``"raw"``, which sends none."""
        if encoding == "raw":
            return None
        return cls(encoding, wire_dtype, layout.storage_dtype, layout.elements)

    @property
    def nbytes(self) -> int:
        """Bytes of a whole snapshot as encoded."""
        return self.bytes_of(self.elements)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a full chunk: whole elements or blocks."""
        if self.encoding == "delta":
            return CHUNK_BYTES
        return CHUNK_BYTES // _BLOCK_BYTES * _BLOCK_BYTES

    def ranges(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """Byte ranges [start, stop) of the chunks from the byte `start` on, where a chunk begins."""
        for first in range(start, self.nbytes, self.chunk_bytes):
            yield first, min(first + self.chunk_bytes, self.nbytes)

    def elements_of(self, start: int, stop: int) -> tuple[int, int] | None:
        """The elements [first, last) that the bytes [start, stop) stand for; None where these are no whole ones."""
        if not 0 <= start < stop <= self.nbytes:
            return None
        if self.encoding == "delta":
            width = ELEMENT_BYTES[self.wire_dtype]
            return None if start % width or stop % width else (start // width, stop // width)
        if start % _BLOCK_BYTES or (stop % _BLOCK_BYTES and stop != self.nbytes):
            return None
        return start // _BLOCK_BYTES * BLOCK_ELEMENTS, min(
            -(-stop // _BLOCK_BYTES) * BLOCK_ELEMENTS, self.elements
        )

    def encode(self, differences: Floats) -> Bytes:
        """A chunk of differences as bytes.

        Args:
            differences: (k,) in the storage type, from an element where a block begins to one where a block ends.
                May be infinite, but not NaN.

        Returns:
            The bytes, (as many as `elements_of` turns back into k,) uint8.
        """
        data = np.empty(self.bytes_of(len(differences)), np.uint8)
        for first in range(0, len(differences), PIECE_ELEMENTS):
            self.encode_piece(differences[first : first + PIECE_ELEMENTS], first, data)
        return data

    def bytes_of(self, elements: int) -> int:
        """Bytes of so many elements from the beginning of a block on."""
        if self.encoding == "delta":
            return elements * ELEMENT_BYTES[self.wire_dtype]
        return elements + _SCALE_BYTES * _blocks(elements)

    def encode_piece(self, differences: Floats, first: int, data: Bytes) -> None:
        """Writes a piece of a chunk's differences as bytes.

        Args:
            differences: (k,) in the storage type, whole blocks unless they are the last ones. May be infinite, but not
                NaN.
            first: elements of the chunk before them, whole blocks.
            data: all bytes of the chunk, of which those of the piece are written.
        """
        with np.errstate(over="ignore", under="ignore"):
            if self.encoding == "delta":
                width = ELEMENT_BYTES[self.wire_dtype]
                largest = min(_LARGEST[self.wire_dtype], _LARGEST[self.storage_dtype])
                narrowed = narrow(np.clip(differences, -largest, largest), self.wire_dtype)
                data[first * width : first * width + len(narrowed)] = narrowed
                return
            all_scales, all_signed = _parted(data)
            blocks = _in_blocks(differences)
            largest_of = np.abs(blocks).max(axis=1)
            np.minimum(largest_of, min(_LARGEST["float32"], _LARGEST[self.storage_dtype]), out=largest_of)
            scales = all_scales[first // BLOCK_ELEMENTS :][: len(blocks)]
            scales[:] = largest_of / _LARGEST_BYTE
            wide = scales.astype(self.storage_dtype)[:, None]
            np.divide(blocks, np.where(wide > 0, wide, 1), out=blocks)
            np.clip(np.rint(blocks, out=blocks), -_LARGEST_BYTE, _LARGEST_BYTE, out=blocks)
            all_signed[first : first + len(differences)] = blocks.reshape(-1)[: len(differences)]

    def decode(self, data: bytes | memoryview | Bytes) -> Floats:
        """A chunk of bytes as differences (k,) in the storage type; infinite where they are too large for it.

        Args:
            data: as `encode` makes them, of a range that `elements_of` takes.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.encoding == "delta":
                return widen(np.frombuffer(data, np.uint8), self.wire_dtype).astype(
                    self.storage_dtype, copy=False
                )
            scales, signed = _parted(data)
            values: Floats = signed.astype(self.storage_dtype)
            whole = len(values) // BLOCK_ELEMENTS
            blocks = values[: whole * BLOCK_ELEMENTS].reshape(-1, BLOCK_ELEMENTS)
            wide = scales.astype(self.storage_dtype)
            np.multiply(blocks, wide[:whole, None], out=blocks)
            values[whole * BLOCK_ELEMENTS :] *= wide[-1]
            return values

    def first_non_finite(self, data: bytes | memoryview | Bytes) -> int | None:
        """Which element of a chunk, counted within it, comes from a number that is not finite; None: none does."""
        if self.encoding == "delta":
            finite = np.isfinite(widen(np.frombuffer(data, np.uint8), self.wire_dtype))
            return None if finite.all() else int(np.argmin(finite))
        finite = np.isfinite(_parted(data)[0])
        return None if finite.all() else int(np.argmin(finite)) * BLOCK_ELEMENTS


def advance(reference: Floats, differences: Floats, out: Floats) -> None:
    """The snapshot that follows `reference`: their sum, clipped to finite numbers. Never NaN for finite references.

    Args:
        reference: (k,) float32 or float64, finite.
        differences: (k,) of the same type, not NaN.
        out: (k,) of the same type; may be `reference`.
    """
    largest = np.finfo(out.dtype).max
    with np.errstate(over="ignore"):
        np.add(reference, differences, out=out)
    np.clip(out, -largest, largest, out=out)


def check_encoding(layout: Layout, encoding: EncodingName, wire_dtype: str | None) -> DifferenceCode | None:
    """The code that an encoding asked for stands for; None for ``"raw"``.

    Args:
        layout: of the snapshots.
        encoding: as the user gave it.
        wire_dtype: likewise; None: what snapshots are kept in.

    Raises:
        ArgumentValueError: no encoding, or one that would send no fewer bytes than raw snapshots have.
    """
    if encoding not in ENCODINGS:
        raise ArgumentValueError(
            f"encoding must be one of {', '.join(ENCODINGS)}, not {encoding!r}", field="encoding"
        )
    code = DifferenceCode.of(layout, encoding, wire_dtype or layout.storage_dtype)
    if code is None or code.nbytes < layout.nbytes:
        return code
    remedy = 'wire_dtype="bfloat16" or encoding="delta-int8"' if encoding == "delta" else 'encoding="raw"'
    raise ArgumentValueError(
        f"encoding={encoding!r} saves nothing: {code.nbytes} bytes a snapshot in {code.wire_dtype}, raw ones have "
        f"{layout.nbytes}; use {remedy}",
        field="encoding",
        encoded=code.nbytes,
        raw=layout.nbytes,
    )


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK_ELEMENTS)


def _in_blocks(differences: Floats) -> Floats:
    """(blocks, 256) a copy, a short last block filled with zeros."""
    blocks = np.zeros((_blocks(len(differences)), BLOCK_ELEMENTS), differences.dtype)
    blocks.reshape(-1)[: len(differences)] = differences
    return blocks


def _parted(data: bytes | memoryview | Bytes) -> tuple[Any, Any]:
    """The scales (blocks,) float32 and the signed bytes (k,) of a chunk."""
    octets = np.frombuffer(data, np.uint8)
    blocks = -(-len(octets) // _BLOCK_BYTES)
    return octets[: _SCALE_BYTES * blocks].view("<f4"), octets[_SCALE_BYTES * blocks :].view(np.int8)
