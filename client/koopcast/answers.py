"""Reads the stream that answers `predict_ahead`: reports, each followed by its displacement in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from koopcast.bulk import keep_buffers
from koopcast.codec import Chunk
from koopcast.errors import DataLoss, InternalError
from koopcast.messages import DTYPE_NAMES
from koopcast.prediction import Prediction, Tensors, block_from_message, summary_from_message
from koopcast.v1 import prediction_pb2
from koopcast.wire import ELEMENT_BYTES, Layout, checksum, storage_dtype, widen

__all__ = ["AnswerReader", "Message", "Sources"]

Message = prediction_pb2.PredictAheadResponse | Chunk
Source = Callable[[prediction_pb2.PredictionReport], Tensors]

_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Sources:
    """Where predictions find what did not come with their answer.

    Attributes:
        base: finds the snapshot that a report speaks of.
        displacement: fetches the displacement; None: it comes with the answer.
    """

    base: Source
    displacement: Source | None = None


class _Incoming:
    """One array as it arrives: chunks are checked, widened and put in their place while they are at hand."""

    def __init__(self, values: npt.NDArray[np.floating[Any]], dtype: str) -> None:
        self._values = values
        self._dtype = dtype
        self._width = ELEMENT_BYTES[dtype]
        self._filled = 0

    def take(self, chunk: Chunk) -> None:
        first, count = self._filled, len(chunk.data) // self._width
        whole = len(chunk.data) == count * self._width and count <= len(self._values) - first
        if chunk.offset != first * self._width or not whole:
            raise DataLoss("an answer's chunk does not follow the one before", offset=chunk.offset)
        if checksum(chunk.data) != chunk.crc32c:
            raise DataLoss(
                "an answer's chunk arrived changed: its checksum does not match", offset=chunk.offset
            )
        self._values[first : first + count] = widen(chunk.data, self._dtype)
        self._filled += count

    def values(self) -> npt.NDArray[np.floating[Any]]:
        if self._filled != len(self._values):
            raise InternalError(
                "the service ended an answer early", received=self._filled, expected=len(self._values)
            )
        return self._values


class AnswerReader:
    """Reads the messages of one call.

    Attributes:
        bytes_received: bytes of data read.
    """

    def __init__(self, layout: Layout) -> None:
        """Read arrays of this layout."""
        self._layout = layout
        self._ready: npt.NDArray[np.floating[Any]] | None = None
        self._base: _Incoming | None = None
        self._told: list[tuple[prediction_pb2.PredictionReport, _Incoming | None]] = []
        self._current: _Incoming | None = None
        self.bytes_received = 0

    def prepare(self, wire_dtype: str) -> None:
        """Gets memory for the first array, before it comes, from the system, which takes as long as to receive it."""
        self._ready = np.empty(self._layout.elements, storage_dtype([wire_dtype]))
        keep_buffers(self._ready.nbytes)
        self._ready.view(np.uint8)[::_PAGE_BYTES] = 0

    def read(self, messages: Iterable[Message], sources: Sources) -> list[Prediction]:
        """All predictions of a call, in the order asked.

        Raises:
            DataLoss: a chunk arrived changed or out of order.
            InternalError: the service ended an answer early, or answered with arrays of another size.
        """
        for message in messages:
            self._take(message, bring=sources.displacement is None)
        return [self._prediction(report, incoming, sources) for report, incoming in self._told]

    def read_base(self, messages: Iterable[Message]) -> Tensors:
        """The base snapshot alone.

        Raises:
            DataLoss, InternalError: as `read`.
        """
        for message in messages:
            self._take(message, bring=False)
        if self._base is None:
            raise InternalError("the service sent no base snapshot", reason="NO_BASE")
        return self._layout.split(self._base.values())

    def _take(self, message: Message, *, bring: bool) -> None:
        if isinstance(message, Chunk):
            if self._current is not None:
                self._current.take(message)
                self.bytes_received += len(message.data)
            return
        kind = message.WhichOneof("message")
        if kind == "report":
            report = message.report
            self._current = self._incoming(report) if report.moved and bring else None
            self._told.append((report, self._current))
        elif kind == "base":
            self._current = self._base = self._incoming(message.base)

    def _incoming(self, told: prediction_pb2.PredictionReport | prediction_pb2.BaseSnapshot) -> _Incoming:
        dtype = _dtype_of(told)
        if told.total_bytes != self._layout.elements * ELEMENT_BYTES[dtype]:
            raise InternalError(
                f"the service announced {told.total_bytes} bytes of {dtype} for {self._layout.elements} elements",
                reason="WRONG_ANSWER",
            )
        values, self._ready = self._ready, None
        if values is None or values.dtype != storage_dtype([dtype]):
            values = np.empty(self._layout.elements, storage_dtype([dtype]))
        return _Incoming(values, dtype)

    def _prediction(
        self, report: prediction_pb2.PredictionReport, incoming: _Incoming | None, sources: Sources
    ) -> Prediction:
        return Prediction(
            id=report.prediction_id,
            base_step=report.base_step,
            from_step=report.from_step,
            steps=report.steps,
            segment=report.segment,
            moved=report.moved,
            operator_index=report.operator_index,
            blocks=tuple(map(block_from_message, report.blocks)),
            summary=summary_from_message(report.summary),
            _displacement=self._displacement(report, incoming, sources),
            _base=self._base_of(report, sources),
        )

    def _displacement(
        self, report: prediction_pb2.PredictionReport, incoming: _Incoming | None, sources: Sources
    ) -> Callable[[], Tensors]:
        if incoming is None and report.moved and sources.displacement is not None:
            fetch = sources.displacement
            return lambda: fetch(report)
        if incoming is not None:
            flat = incoming.values()
        else:
            flat = np.zeros(self._layout.elements, storage_dtype([_dtype_of(report)]))
        displacement = self._layout.split(flat)
        return lambda: displacement

    def _base_of(self, report: prediction_pb2.PredictionReport, sources: Sources) -> Callable[[], Tensors]:
        if self._base is None:
            return lambda: sources.base(report)
        base = self._layout.split(self._base.values())
        return lambda: base


def _dtype_of(told: prediction_pb2.PredictionReport | prediction_pb2.BaseSnapshot) -> str:
    return DTYPE_NAMES.get(told.dtype, "float32")
