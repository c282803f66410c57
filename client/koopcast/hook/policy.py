"""Which prediction to jump to: pure decisions over answers and losses, and the defaults that are tuned.

A *search order* is a generator: it yields the prediction to probe next, is sent that prediction's loss (NaN where the
probe failed), and returns when it has seen enough. Whatever it probed, the best loss wins, and only one below the
loss of the current weights is a jump::

    def two_at_most(predictions, loss_now):
        for prediction in predictions[:2]:
            yield prediction
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

from koopcast.operator import Operator
from koopcast.prediction import Prediction

__all__ = [
    "BACKTESTED_HORIZON_STRIDES",
    "DEFAULT_OPERATORS",
    "PROBED_HORIZON_STRIDES",
    "Choice",
    "SearchOrder",
    "ascending",
    "choose_by_backtest",
    "choose_by_loss",
    "exhaustive",
    "is_trusted",
]

SearchOrder = Callable[[Sequence[Prediction], float], Generator[Prediction, float, None]]
"""(predictions that move, loss of the current weights) to the predictions to probe; see the module's docstring."""

DEFAULT_OPERATORS: Final = (Operator(window=10, rank=4, ridge=1e-4), Operator(window=10, rank=8, ridge=1e-6))
PROBED_HORIZON_STRIDES: Final = (4, 16, 64, 256)
"""Horizons tried where a probe decides. Unit: strides."""
BACKTESTED_HORIZON_STRIDES: Final = (1, 2, 3, 4, 6, 8)
"""Horizons asked for where the back-test decides; those beyond what it looked ahead are not taken. Unit: strides."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a decision came to.

    Attributes:
        prediction: the best candidate; None where there was none.
        accepted: whether to jump to it.
        reason: why, in words.
        loss_before: loss of the current weights; None without a probe.
        loss_after: loss of `prediction`; None without a probe.
        refined_loss: loss where the jump was refined to; None where it was not refined, or without success.
    """

    prediction: Prediction | None
    accepted: bool
    reason: str
    loss_before: float | None = None
    loss_after: float | None = None
    refined_loss: float | None = None

    @property
    def moved(self) -> bool:
        """Whether the weights are elsewhere now: jumped, refined, or both."""
        return self.accepted or self.refined_loss is not None

    @property
    def final_loss(self) -> float | None:
        """Loss after all of it."""
        return self.loss_after if self.refined_loss is None else self.refined_loss


def exhaustive(
    predictions: Sequence[Prediction],
    loss_now: float,  # noqa: ARG001  # part of what a search order is
) -> Generator[Prediction, float, None]:
    """Probes every prediction, in the order given."""
    for prediction in predictions:  # noqa: UP028  # a list takes no `send`, so "yield from" would not do
        yield prediction


def ascending(predictions: Sequence[Prediction], loss_now: float) -> Generator[Prediction, float, None]:
    """For each operator from the shortest horizon up, until the loss no longer falls."""
    ordered = sorted(predictions, key=lambda prediction: (prediction.operator_index, prediction.steps))
    for _, group in itertools.groupby(ordered, key=lambda prediction: prediction.operator_index):
        lowest = loss_now
        for prediction in group:
            loss = yield prediction
            if not loss < lowest:
                break
            lowest = loss


def choose_by_loss(
    predictions: Sequence[Prediction],
    loss_before: float,
    evaluate: Callable[[Prediction], float],
    order: SearchOrder = exhaustive,
) -> Choice:
    """Probes predictions in the given order; the best one is accepted if its loss is below `loss_before`."""
    if not math.isfinite(loss_before):
        return Choice(None, False, f"the probe's loss of the current weights is {loss_before}", loss_before)
    best, best_loss = None, math.inf
    search = order(predictions, loss_before)
    loss = None
    while True:
        try:
            candidate = next(search) if loss is None else search.send(loss)
        except StopIteration:
            break
        loss = evaluate(candidate)
        if loss < best_loss:
            best, best_loss = candidate, loss
    if best is None:
        return Choice(None, False, "no candidate has a finite loss", loss_before)
    words = f"{best.steps:g} steps ahead: loss {loss_before:.6g} to {best_loss:.6g}"
    if best_loss < loss_before:
        return Choice(best, True, f"jumped {words}", loss_before, best_loss)
    return Choice(best, False, f"no candidate has a lower loss; best {words}", loss_before, best_loss)


def choose_by_backtest(predictions: Sequence[Prediction]) -> Choice:
    """Without a probe: the longest horizon that was back-tested and beat both rivals, by the better operator."""
    trusted = [prediction for prediction in predictions if is_trusted(prediction)]
    if not trusted:
        longest = max(predictions, key=lambda prediction: prediction.steps, default=None)
        return Choice(longest, False, "no candidate is within the back-test and better than its rivals there")
    best = min(trusted, key=lambda prediction: (-prediction.steps, _worst_error(prediction)))
    return Choice(best, True, f"jumped {best.steps:g} steps ahead: back-test error {_worst_error(best):.3g}")


def is_trusted(prediction: Prediction) -> bool:
    """Whether every moved block was back-tested that far and beat persistence (error 1) and linear extrapolation."""
    return prediction.summary.moved > 0 and prediction.summary.untrusted == 0


def _worst_error(prediction: Prediction) -> float:
    """Of the moved blocks that are told of; of all blocks together where none of these is moved."""
    errors = [block.backtest_error for block in prediction.blocks if block.moved]
    return max(errors, default=prediction.summary.backtest_error)
