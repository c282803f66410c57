"""Reads the stream that answers `predict_ahead`: reports, each followed by its displacement in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcast.errors import DataLoss, InternalError
from koopcast.messages import DTYPE_NAMES
from koopcast.prediction import Prediction, Tensors, block_from_message, summary_from_message
from koopcast.v1 import prediction_pb2
from koopcast.wire import Layout, checksum, storage_dtype, widen

__all__ = ["BaseLookup", "read_answers"]

BaseLookup = Callable[[int, int], Tensors]
"""Finds the base snapshot of (segment, step)."""


class _Incoming:
    """Bytes of one answer as they arrive."""

    def __init__(self, total_bytes: int, dtype_number: int) -> None:
        self.dtype = DTYPE_NAMES.get(dtype_number, "float32")
        self.buffer = np.empty(total_bytes, np.uint8)
        self.filled = 0

    def take(self, chunk: prediction_pb2.DisplacementChunk) -> None:
        data = chunk.data
        if chunk.offset != self.filled or self.filled + len(data) > len(self.buffer):
            raise DataLoss("an answer's chunk does not follow the one before", offset=chunk.offset)
        if checksum(data) != chunk.crc32c:
            raise DataLoss(
                "an answer's chunk arrived changed: its checksum does not match", offset=chunk.offset
            )
        self.buffer[self.filled : self.filled + len(data)] = np.frombuffer(data, np.uint8)
        self.filled += len(data)

    def values(self) -> npt.NDArray[np.floating[Any]]:
        if self.filled != len(self.buffer):
            raise InternalError(
                "the service ended an answer early", received=self.filled, expected=len(self.buffer)
            )
        return widen(self.buffer, self.dtype)


class _Reader:
    """Gathers the predictions of one call."""

    def __init__(self, layout: Layout, base: BaseLookup) -> None:
        self._layout = layout
        self._held_base = base
        self._sent_base: _Incoming | None = None
        self._pending: list[tuple[prediction_pb2.PredictionReport, _Incoming | None]] = []
        self._current: _Incoming | None = None
        self.bytes_received = 0

    def take(self, answer: prediction_pb2.PredictAheadResponse) -> None:
        kind = answer.WhichOneof("message")
        if kind == "report":
            report = answer.report
            self._current = _Incoming(report.total_bytes, report.dtype) if report.moved else None
            self._pending.append((report, self._current))
        elif kind == "base":
            self._current = self._sent_base = _Incoming(answer.base.total_bytes, answer.base.dtype)
        elif kind == "chunk" and self._current is not None:
            self._current.take(answer.chunk)
            self.bytes_received += len(answer.chunk.data)

    def predictions(self) -> list[Prediction]:
        return [self._prediction(report, incoming) for report, incoming in self._pending]

    def _prediction(self, report: prediction_pb2.PredictionReport, incoming: _Incoming | None) -> Prediction:
        if incoming is None:
            zeros = np.zeros(self._layout.elements, storage_dtype([DTYPE_NAMES.get(report.dtype, "float32")]))
            displacement = self._layout.split(zeros)
        else:
            displacement = self._layout.split(incoming.values())
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
            displacement=displacement,
            _base=lambda: self._base(report.segment, report.base_step),
        )

    def _base(self, segment: int, step: int) -> Tensors:
        if self._sent_base is not None:
            return self._layout.split(self._sent_base.values())
        return self._held_base(segment, step)


def read_answers(
    answers: Iterable[prediction_pb2.PredictAheadResponse], layout: Layout, base: BaseLookup
) -> tuple[list[Prediction], int]:
    """All predictions of a call, in the order asked, and the bytes of data received.

    Raises:
        DataLoss: a chunk arrived changed or out of order.
        InternalError: the service ended an answer early.
    """
    reader = _Reader(layout, base)
    for answer in answers:
        reader.take(answer)
    return reader.predictions(), reader.bytes_received
