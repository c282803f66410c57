"""The trainer's side of differences: what the service holds, and pushes that say only what changed.

::

    arrays ──┐
             ├── difference ── encode ──> chunks          (`DeltaPayload`, chunk by chunk, as the upload asks)
    reference┘
        ^
        └──── advance <── decode <── the same chunks      (`Differences.note`, once the service has accepted)

A push that fails leaves the reference alone, so that sending it again, or resuming it, makes the same bytes. The first
snapshot is pushed raw, and so is one after the service said that it does not hold the reference.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from koopcast.encoding import PIECE_ELEMENTS, DifferenceCode, advance
from koopcast.errors import ArgumentValueError, FailedPrecondition
from koopcast.messages import ENCODING_NUMBERS
from koopcast.payload import Payload, RawPayload
from koopcast.short_upload import ShortUpload
from koopcast.upload import PushResult, Upload
from koopcast.wire import CHUNK_BYTES, ELEMENT_BYTES, Floats, Layout, checksum, widen

__all__ = ["DeltaPayload", "Differences", "FlatArrays", "Sent"]

Send = Callable[[Payload, bytes | None], tuple[PushResult, Upload | ShortUpload]]
"""Uploads a payload. The digest is that of other bytes that stand for the same snapshot, should the step be held."""

_REMEMBERED: Final = 1024
"""Pushes whose bytes are remembered: as many as the longest window holds."""


class FlatArrays:
    """A snapshot's arrays, read as if they were one.

    Attributes:
        layout: of the snapshot.
        raw: the same as bytes.
    """

    def __init__(self, layout: Layout, raw: RawPayload) -> None:
        """Read from `raw`."""
        self.layout = layout
        self.raw = raw
        self._run_starts = [run.first_element for run in layout.runs]

    def read(self, first: int, last: int) -> Floats:
        """(last - first,) a copy of these elements, in the storage type."""
        out = np.empty(last - first, self.layout.storage_dtype)
        start, number = first, bisect.bisect_right(self._run_starts, first) - 1
        while start < last:
            run = self.layout.runs[number]
            stop = min(last, run.first_element + run.elements)
            width = ELEMENT_BYTES[run.dtype]
            begin = run.first_byte + (start - run.first_element) * width
            data = self.raw.read(begin, begin + (stop - start) * width)
            out[start - first : stop - first] = widen(data, run.dtype)
            start, number = stop, number + 1
        return out

    def inspect(self) -> int:
        """Checks that all of it is finite; returns the crc32c of its bytes.

        Raises:
            ArgumentValueError: a value is not finite; it names the tensor.
        """
        crc = 0
        for start, stop in self.layout.chunk_ranges(0, CHUNK_BYTES):
            run = self.layout.run_of(start, stop - start)
            if run is None:
                raise ValueError(f"the bytes {start}:{stop} are in no run of the layout")
            data = self.raw.read(start, stop)
            crc = checksum(data, crc)
            first = run.first_element + (start - run.first_byte) // ELEMENT_BYTES[run.dtype]
            self._refuse_non_finite(first, widen(data, run.dtype))
        return crc

    def _refuse_non_finite(self, first: int, values: Floats) -> None:
        """`values` are the elements from flat index `first` on."""
        with np.errstate(invalid="ignore"):
            if np.isfinite(values.max()) and np.isfinite(values.min()):  # both pass NaN on
                return
        bad = int(np.argmin(np.isfinite(values)))
        name = self.layout.name_at(first + bad)
        index = first + bad - self.layout.element_bounds[list(self.layout.specs).index(name)]
        raise ArgumentValueError(
            f"tensor {name!r} holds {values[bad]} at flat index {index}; snapshots must be finite",
            reason="NON_FINITE",
            field=name,
            index=index,
            value=values[bad],
        )


class DeltaPayload:
    """The bytes of one snapshot's differences, made when they are asked for: always the same ones.

    Attributes:
        encoding: number of the encoding, for the header.
        nbytes: of all chunks.
        reference: (segment, step) of the snapshot that the differences are from.
    """

    def __init__(
        self, code: DifferenceCode, arrays: FlatArrays, base: Floats, reference: tuple[int, int]
    ) -> None:
        """Take arrays and reference as they are; neither may change while this is read."""
        self._code = code
        self._arrays = arrays
        self._base = base
        self.encoding = ENCODING_NUMBERS[code.encoding]
        self.nbytes = code.nbytes
        self.reference: tuple[int, int] | None = reference

    def ranges(self, start: int) -> Iterator[tuple[int, int]]:
        """Byte ranges of the chunks from the byte `start` on, where a chunk begins."""
        return self._code.ranges(start)

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes of one of the ranges."""
        elements = self._code.elements_of(start, stop)
        if elements is None:
            raise ValueError(f"no chunk holds the bytes {start}:{stop} of differences")
        data = np.empty(stop - start, np.uint8)
        for first, last in _pieces(*elements):
            self._code.encode_piece(self._differences(first, last), first - elements[0], data)
        return data.data

    def land(self) -> None:
        """Makes of the reference what the service has made of it, bit for bit."""
        for first, last in _pieces(0, len(self._base)):
            here = self._base[first:last]
            advance(here, self._code.decode(self._code.encode(self._differences(first, last))), here)

    def _differences(self, first: int, last: int) -> Floats:
        values = self._arrays.read(first, last)
        with np.errstate(over="ignore", under="ignore"):
            np.subtract(values, self._base[first:last], out=values)
        return values


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of a step.

    Attributes:
        arrays: the snapshot.
        raw_crc: crc32c of its own bytes.
        digest: of the bytes as encoded, with which the upload was committed.
    """

    arrays: FlatArrays
    raw_crc: int
    digest: bytes


class Differences:
    """What a job remembers so that it can push differences. One push at a time."""

    def __init__(self, layout: Layout, code: DifferenceCode) -> None:
        """Hold no reference yet: the first push is raw."""
        self._layout = layout
        self._code = code
        self._base: Floats | None = None
        self._stands_for: tuple[int, int] | None = None
        self._sent: OrderedDict[tuple[int, int], tuple[int, bytes]] = OrderedDict()

    @property
    def stands_for(self) -> tuple[int, int] | None:
        """(segment, step) of the snapshot that the service is known to hold; None where none is."""
        return self._stands_for

    def base(self) -> Floats | None:
        """(n,) a copy of that snapshot as the service holds it, in the storage type."""
        return None if self._base is None or self._stands_for is None else self._base.copy()

    def payload(self, arrays: FlatArrays) -> DeltaPayload | None:
        """The differences of these arrays; None where there is no reference: they are to be pushed raw."""
        if self._base is None or self._stands_for is None:
            return None
        return DeltaPayload(self._code, arrays, self._base, self._stands_for)

    def forget(self) -> None:
        """The service does not hold the reference: the next push is raw."""
        self._stands_for = None

    def digest_of(self, identity: tuple[int, int], raw_crc: int) -> bytes | None:
        """Digest under which the service holds these arrays if it still holds (segment, step); None: it never did.

        The reference has moved on since: encoded again, the same arrays make other bytes.
        """
        crc, digest = self._sent.get(identity, (None, None))
        return digest if crc == raw_crc else None

    def push(self, identity: tuple[int, int], raw: RawPayload, send: Send) -> PushResult:
        """Sends a snapshot as differences; whole where the service does not hold what they would be from.

        Args:
            identity: segment and step.
            raw: the snapshot.
            send: uploads a payload.

        Raises:
            ArgumentValueError: a value is not finite.
            KoopcastError: as the service answers.
        """
        arrays = FlatArrays(self._layout, raw)
        raw_crc = arrays.inspect()
        held_digest = self.digest_of(identity, raw_crc)
        payload = self.payload(arrays)
        try:
            result, upload = send(payload or raw, held_digest)
        except FailedPrecondition as error:
            if payload is None or error.reason != "REFERENCE_NOT_HELD":
                raise
            self.forget()
            payload = None
            result, upload = send(raw, held_digest)
        if result.outcome == "accepted" or (result.outcome == "duplicate" and held_digest is None):
            self.note_held(identity, Sent(arrays, raw_crc, upload.digest()), payload)
        return result

    def note_held(self, identity: tuple[int, int], sent: Sent, payload: DeltaPayload | None) -> None:
        """The service holds (segment, step), which was sent just now: it is the new reference, if it is newer.

        Args:
            identity: segment and step.
            sent: what was sent.
            payload: its differences; None: it was sent raw.
        """
        self._sent[identity] = sent.raw_crc, sent.digest
        while len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
        if self._stands_for is not None and identity <= self._stands_for:
            return
        self._stands_for = None  # should this be interrupted, the next push is raw
        if payload is not None:
            payload.land()
        else:
            self._take(sent.arrays)
        self._stands_for = identity

    def _take(self, arrays: FlatArrays) -> None:
        if self._base is None:
            self._base = np.empty(self._layout.elements, self._layout.storage_dtype)
        for first, last in _pieces(0, self._layout.elements):
            self._base[first:last] = arrays.read(first, last)


def _pieces(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The elements [first, last) in ranges that fit into the cache, each of whole blocks if `first` begins one."""
    for start in range(first, last, PIECE_ELEMENTS):
        yield start, min(start + PIECE_ELEMENTS, last)
