"""One question to the service, and the checks that its answer must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from koopcast.errors import InternalError
from koopcast.hook.asked import Asked
from koopcast.operator import Operator
from koopcast.prediction import Prediction, Tensors
from koopcast.wire import TensorSpec

__all__ = ["Question", "check_answer", "check_displacement"]


class Question(Asked[Sequence[Prediction]]):
    """Where will the weights be, asked at `base_step` for a jump at `from_step`.

    The training thread waits for it once, at `from_step`.

    Attributes:
        base_step: step of the snapshot it is asked at.
        from_step: step the jump starts from.
        horizons: trainer steps ahead of `from_step`.
        operators: the operators to answer with.
        clock_intervals: the horizons on the clock of cumulative learning rate; none where the clock is the step.
        from_clock: the clock at `from_step`, with `clock_intervals`.
        held: snapshots in the window, where too few of them is the reason for no answer.
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
        super().__init__(seconds)
        self.base_step = base_step
        self.from_step = from_step
        self.horizons = tuple(horizons)
        self.operators = tuple(operators)
        self.clock_intervals = tuple(clock_intervals)
        self.from_clock = from_clock
        self.held: int | None = None

    @property
    def predictions(self) -> Sequence[Prediction]:
        """The answer; empty where there was none."""
        return self.value if self.value is not None else ()

    @property
    def one_by_one(self) -> bool:
        """Whether displacements are fetched when they are looked at: not where the window may have moved on by then."""
        return self.base_step == self.from_step

    def lack(self, reason: str, held: int) -> None:
        """Say that there is no answer since the window holds so few snapshots."""
        self.held = held
        self.decline(reason)


def check_answer(predictions: Sequence[Prediction], question: Question, segment: int) -> Sequence[Prediction]:
    """The answer, if it is one to this question.

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
    return predictions


def check_displacement(displacement: Tensors, tensors: Mapping[str, TensorSpec]) -> Tensors:
    """A displacement of these tensors, in arrays that may be written to.

    Raises:
        InternalError: it is of others, or not finite; nothing of it may touch the weights.
    """
    if list(displacement) != list(tensors):
        raise InternalError("the service's answer has other tensors than the job", reason="WRONG_ANSWER")
    for name, moved in displacement.items():
        if moved.shape != tensors[name].shape:
            raise InternalError(
                f"the service's answer has another shape for tensor {name!r}", reason="WRONG_ANSWER"
            )
        if not _all_finite(moved):
            raise InternalError(
                f"the service's answer for tensor {name!r} is not finite", reason="NON_FINITE"
            )
    return {n: d if d.flags.writeable else np.array(d) for n, d in displacement.items()}


def _all_finite(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> bool:
    """Whether no value is NaN or infinite; makes nothing of the array's size."""
    if values.size == 0:
        return True
    return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
