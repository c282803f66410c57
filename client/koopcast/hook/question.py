"""One question to the service and its answer, handed from one thread to the other; and the checks it must pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from koopcast.errors import InternalError
from koopcast.operator import Operator
from koopcast.prediction import Prediction
from koopcast.wire import TensorSpec

__all__ = ["Question", "check_answer"]


class Question:
    """Where will the weights be, asked at `base_step` for a jump at `from_step`.

    The training thread waits for it once, at `from_step`; from then on it is closed and a later answer is let go.

    Attributes:
        base_step: step of the snapshot it is asked at.
        from_step: step the jump starts from.
        horizons: trainer steps ahead of `from_step`.
        operators: the operators to answer with.
        clock_intervals: the horizons on the clock of cumulative learning rate; none where the clock is the step.
        from_clock: the clock at `from_step`, with `clock_intervals`.
        predictions: the answer; empty where there was none.
        reason: why there was none.
        held: snapshots in the window, where too few of them is the reason.
    """

    def __init__(
        self,
        base_step: int,
        from_step: int,
        horizons: Sequence[float],
        operators: Sequence[Operator],
        seconds: float,
        clock_intervals: Sequence[float] = (),
        from_clock: float | None = None,
    ) -> None:
        """Ask; an answer after `seconds` is no use."""
        self.base_step = base_step
        self.from_step = from_step
        self.horizons = tuple(horizons)
        self.operators = tuple(operators)
        self.clock_intervals = tuple(clock_intervals)
        self.from_clock = from_clock
        self.predictions: Sequence[Prediction] = ()
        self.reason = "no answer in time"
        self.held: int | None = None
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._over = threading.Event()

    def seconds_left(self) -> float:
        """Time until an answer is no use any more."""
        return 0.0 if self._over.is_set() else self._deadline - time.monotonic()

    def answer(self, predictions: Sequence[Prediction]) -> None:
        """Give the answer; let go where nobody waits any more."""
        with self._lock:
            if not self._over.is_set():
                self.predictions, self.reason = predictions, ""
                self._over.set()

    def decline(self, reason: str, held: int | None = None) -> None:
        """Say why there is no answer."""
        with self._lock:
            if not self._over.is_set():
                self.reason, self.held = reason, held
                self._over.set()

    def wait(self, seconds: float) -> None:
        """Wait at most so long, then close the question."""
        self._over.wait(max(0.0, seconds))
        with self._lock:
            self._over.set()


def check_answer(
    predictions: Sequence[Prediction], question: Question, tensors: Mapping[str, TensorSpec], segment: int
) -> list[Prediction]:
    """The answer, if it is one to this question and of these tensors.

    Raises:
        InternalError: it is not; nothing of it may touch the weights.
    """
    wanted = [(index, h) for index in range(len(question.operators)) for h in question.horizons]
    if [(p.operator_index, p.steps) for p in predictions] != wanted:
        raise InternalError("the service answered another question than was asked", reason="WRONG_ANSWER")
    for prediction in predictions:
        where = (prediction.segment, prediction.base_step, prediction.from_step)
        if where != (segment, question.base_step, question.from_step):
            raise InternalError(
                f"the service's answer is stale: (segment, base, from) is {where}", reason="STALE_ANSWER"
            )
    return [_checked(prediction, tensors) for prediction in predictions]


def _checked(prediction: Prediction, tensors: Mapping[str, TensorSpec]) -> Prediction:
    if list(prediction.displacement) != list(tensors):
        raise InternalError("the service's answer has other tensors than the job", reason="WRONG_ANSWER")
    for name, displacement in prediction.displacement.items():
        if displacement.shape != tensors[name].shape:
            raise InternalError(
                f"the service's answer has another shape for tensor {name!r}", reason="WRONG_ANSWER"
            )
        if not np.isfinite(displacement).all():
            raise InternalError(
                f"the service's answer for tensor {name!r} is not finite", reason="NON_FINITE"
            )
    if all(displacement.flags.writeable for displacement in prediction.displacement.values()):
        return prediction
    return replace(prediction, displacement={n: np.array(d) for n, d in prediction.displacement.items()})
