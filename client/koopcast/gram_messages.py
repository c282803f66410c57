"""Gram rows and coefficients to protobuf messages and back. Used by the client and by the service."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from koopcast.errors import FailedPrecondition, InternalError, InvalidArgument
from koopcast.gram import Coefficients, Floats, GramRow
from koopcast.prediction import Prediction, Tensors, block_from_message, summary_from_message
from koopcast.v1 import prediction_pb2, snapshot_pb2

__all__ = ["coefficients_to_message", "fill_row", "read_coefficients", "row_from_message"]

_FIELDS = ("velocity_products", "weight_products", "weights_squared")


def fill_row(message: snapshot_pb2.PushGramRowRequest, row: GramRow) -> None:
    """Put the numbers of a checked row into its message."""
    for field, part in zip(_FIELDS, (row.velocity, row.weight, row.squared), strict=True):
        getattr(message, field).extend(part.reshape(-1).tolist())


def row_from_message(
    message: snapshot_pb2.PushGramRowRequest, blocks: int, velocities: int, *, with_state: bool
) -> GramRow:
    """The row of a message.

    Args:
        message: of a snapshot.
        blocks: B, of the job.
        velocities: h, held with the snapshot.
        with_state: whether the operator needs products of weights.

    Raises:
        InvalidArgument: a field has another number of products, or one that is not finite.
    """
    widths = (velocities, velocities if with_state else 0, 1)
    parts = []
    for field, width in zip(_FIELDS, widths, strict=True):
        part = np.array(getattr(message, field), dtype=np.float64)
        if len(part) != blocks * width:
            raise InvalidArgument(
                f"{field} has {len(part)} products; a snapshot with {velocities} velocities of {blocks} blocks has "
                f"{blocks * width}",
                field=field,
                given=len(part),
                expected=blocks * width,
            )
        if not np.isfinite(part).all():
            bad = int(np.argmin(np.isfinite(part)))
            raise InvalidArgument(
                f"{field} holds {part[bad]} for block {bad // max(1, width)}; products must be finite",
                reason="NON_FINITE",
                field=field,
                index=bad,
                value=part[bad],
            )
        parts.append(part.reshape(blocks, width))
    velocity, weight, squared = parts
    return GramRow(velocity, weight, squared.reshape(blocks))


def coefficients_to_message(velocity: Floats, last: Floats, strides: float) -> prediction_pb2.Coefficients:
    """(B, M) and (B,) as a message; `last` is left out where it is all zero."""
    return prediction_pb2.Coefficients(
        velocity=velocity.reshape(-1).tolist(), last=last.tolist() if last.any() else [], strides=strides
    )


def read_coefficients(answers: Iterable[prediction_pb2.PredictAheadResponse]) -> tuple[list[Prediction], int]:
    """All predictions of a call on a window that the trainer holds, and the bytes of the messages.

    Raises:
        InternalError: the service answered with something else.
    """
    predictions, received = [], 0
    for answer in answers:
        received += answer.ByteSize()
        if answer.WhichOneof("message") != "report" or answer.report.total_bytes:
            raise InternalError(
                "the service answered with a displacement where coefficients were asked for",
                reason="WRONG_ANSWER",
            )
        predictions.append(_prediction(answer.report))
    return predictions, received


def _prediction(report: prediction_pb2.PredictionReport) -> Prediction:
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
        coefficients=_coefficients(report) if report.moved else None,
        _displacement=_elsewhere(report, "displacement"),
        _base=_elsewhere(report, "weights"),
    )


def _coefficients(report: prediction_pb2.PredictionReport) -> Coefficients:
    blocks, message = report.summary.blocks, report.coefficients
    velocity, last = np.array(message.velocity, np.float64), np.array(message.last, np.float64)
    if not blocks or len(velocity) % blocks or len(last) not in (0, blocks):
        raise InternalError(
            f"the service answered with {len(velocity)} and {len(last)} coefficients for {blocks} blocks",
            reason="WRONG_ANSWER",
        )
    if not (np.isfinite(velocity).all() and np.isfinite(last).all()):
        raise InternalError("the service answered with coefficients that are not finite", reason="NON_FINITE")
    if not 0 < message.strides < math.inf:
        raise InternalError(
            f"the service answered with a horizon of {message.strides} strides", reason="WRONG_ANSWER"
        )
    return Coefficients(
        report.base_step, velocity.reshape(blocks, -1), last if len(last) else None, message.strides
    )


def _elsewhere(report: prediction_pb2.PredictionReport, what: str) -> Callable[[], Tensors]:
    def refuse() -> Any:
        raise FailedPrecondition(
            f"the window of this prediction (step {report.base_step}) is in the trainer: "
            f"TrainerWindow.bind(prediction).{what} makes its {what} from the coefficients",
            reason="NOT_BOUND",
            step=report.base_step,
        )

    return refuse
