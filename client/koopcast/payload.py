"""What a push sends: the bytes of a snapshot, chunk by chunk, read from where they are."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np

from koopcast.v1 import tensor_pb2
from koopcast.wire import Bytes, Layout, flat_bytes, flat_view

__all__ = ["PUSHED_CHUNK_BYTES", "Payload", "RawPayload"]

PUSHED_CHUNK_BYTES: Final = 2 << 20
"""Bytes of data in a chunk of a raw snapshot: as many as the service takes. Twice as many messages are slower."""


class Payload(Protocol):
    """The bytes of one snapshot as they travel. Reading the same range twice gives the same bytes."""

    @property
    def encoding(self) -> tensor_pb2.Encoding:
        """How they are encoded."""

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks together, as encoded."""

    @property
    def reference(self) -> tuple[int, int] | None:
        """Segment and step of the snapshot that differences are from."""

    def ranges(self, start: int) -> Iterator[tuple[int, int]]:
        """Byte ranges [start, stop) of the chunks from `start`, the border of a chunk, on."""

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes of one chunk; valid until the next call."""


class RawPayload:
    """A snapshot's elements themselves. Nothing is copied but what lies scattered or on a device, chunk by chunk.

    Attributes:
        encoding: raw.
        nbytes: bytes of all tensors together.
        reference: none.
        kept: a copy of the bytes, where one is wanted: whole as soon as all chunks were read.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, Any], *, keep: bool = False) -> None:
        """Take the arrays of a snapshot, which must not change while it is sent.

        Args:
            layout: the job's tensors.
            tensors: name to NumPy array or torch tensor.
            keep: copy what is read.

        Raises:
            ArgumentValueError, ArgumentTypeError: as `Layout.check`.
        """
        layout.check(tensors)
        self.encoding = tensor_pb2.ENCODING_RAW
        self.nbytes = layout.nbytes
        self.reference: tuple[int, int] | None = None
        self.kept: Bytes | None = np.empty(layout.nbytes, np.uint8) if keep else None
        self._layout = layout
        self._arrays = [(name, tensors[name]) for name in layout.specs]
        self._views = [flat_view(array) for _, array in self._arrays]
        self._scratch: Bytes = np.empty(0, np.uint8)
        self._copied: tuple[int, Bytes] | None = None

    def ranges(self, start: int) -> Iterator[tuple[int, int]]:
        """See `Payload`."""
        return self._layout.chunk_ranges(start, PUSHED_CHUNK_BYTES)

    def read(self, start: int, stop: int) -> memoryview:
        """See `Payload`."""
        bounds = self._layout.byte_bounds
        tensor = bisect.bisect_right(bounds, start) - 1
        if self.kept is None and stop <= bounds[tensor + 1]:
            return self._bytes_of(tensor)[start - bounds[tensor] : stop - bounds[tensor]].data
        gathered = self._room(start, stop)
        position = start
        while position < stop:
            end = min(stop, bounds[tensor + 1])
            source = self._bytes_of(tensor)[position - bounds[tensor] : end - bounds[tensor]]
            gathered[position - start : end - start] = source
            position, tensor = end, tensor + 1
        return gathered.data

    def _room(self, start: int, stop: int) -> Bytes:
        if self.kept is not None:
            return self.kept[start:stop]
        if len(self._scratch) < stop - start:
            self._scratch = np.empty(stop - start, np.uint8)
        return self._scratch[: stop - start]

    def _bytes_of(self, tensor: int) -> Bytes:
        """A tensor's bytes; of those that must be copied, one at a time is."""
        view = self._views[tensor]
        if view is not None:
            return view
        if self._copied is None or self._copied[0] != tensor:
            self._copied = None  # the last one's memory first
            self._copied = tensor, flat_bytes(*self._arrays[tensor])
        return self._copied[1]
