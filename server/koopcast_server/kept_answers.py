"""A job's last answers, kept so that their displacements can be asked for one at a time while the window stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from koopcast.errors import FailedPrecondition, NotFound
from koopcast.operator import Operator
from koopcast.v1 import prediction_pb2
from koopcast_server.answering import Answer, Question

__all__ = ["KeptAnswer", "KeptAnswers"]

_KEPT_BYTES: Final = 1 << 20
"""Coefficients kept for one call. Larger solutions are not kept: they are solved again when they are asked for."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """One prediction that may be asked for again.

    Attributes:
        report: what was said of it, without its blocks.
        operator: what it was answered with.
        question: its own question alone.
        answer: its solution; None where that is to be found again.
    """

    report: prediction_pb2.PredictionReport
    operator: Operator
    question: Question
    answer: Answer | None

    @property
    def nbytes(self) -> int:
        """Bytes of the solution."""
        parts = self.answer.solved.parts if self.answer is not None else ()
        return sum(
            part.velocity_coefficients.nbytes
            + part.last_coefficients.nbytes
            + (0 if part.values is None else part.values.nbytes)
            for part in parts
        )

    @classmethod
    def of(
        cls, report: prediction_pb2.PredictionReport, operator: Operator, question: Question, answer: Answer
    ) -> KeptAnswer:
        """Keep an answer to `question`, which asks for nothing else, with the report that told of it."""
        kept = prediction_pb2.PredictionReport()
        kept.CopyFrom(report)
        kept.ClearField("blocks")
        return cls(kept, operator, question, replace(answer, blocks=()))


@dataclass(frozen=True)
class KeptAnswers:
    """The answers of one call.

    Attributes:
        version: of the window that they were made from.
        answers: by the id of the prediction.
    """

    version: int = -1
    answers: Mapping[str, KeptAnswer] = field(default_factory=dict)

    @classmethod
    def of(cls, version: int, answers: list[KeptAnswer]) -> KeptAnswers:
        """Keep these, without their solutions where those are large."""
        if sum(kept.nbytes for kept in answers) > _KEPT_BYTES:
            answers = [replace(kept, answer=None) for kept in answers]
        return cls(version, {kept.report.prediction_id: kept for kept in answers})

    def find(self, prediction_id: str, version: int) -> KeptAnswer:
        """The answer with this id, for the window of this version.

        Raises:
            NotFound: it is not of the last answers.
            FailedPrecondition: the window has changed since.
        """
        kept = self.answers.get(prediction_id)
        if kept is None:
            raise NotFound(
                f"prediction {prediction_id!r} is not of the job's last answers: ask again",
                reason="PREDICTION_NOT_FOUND",
                prediction=prediction_id,
            )
        if version != self.version:
            raise FailedPrecondition(
                f"the window has changed since prediction {prediction_id!r} was made, at step {kept.report.base_step}: "
                "ask again",
                reason="WINDOW_MOVED",
                prediction=prediction_id,
                base_step=kept.report.base_step,
            )
        return kept
