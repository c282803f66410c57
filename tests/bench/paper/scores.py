"""How good predictions were: error relative to the distance moved, loss, time; and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paper import textbook
from paper.networks import Layout
from paper.predictors import Answer
from paper.timing import Cost

__all__ = ["HEADER", "Score", "conditioning", "row", "score"]

Array = NDArray[np.float64]

_BEST_SHARE: Final = 11 / 25
"""The networks that enter the figure of the authors' published example: the 11 best of 25."""

HEADER: Final = (
    "| predicted by | error / distance moved: median (quartiles) | the authors' measure: all / their best 44 % | "
    "loss, median: t₂ → predicted (trained) | raised the loss | below training | seconds, wall (CPU) | T steps / that | differs from U^T w (within what the snapshots span) |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Score:
    """One network's prediction against the truth.

    Attributes:
        errors: |predicted - true| of every weight (size).
        distances: |true - w(t₂)| of every weight (size).
        start: w(t₂) (size).
        mean_error: mean over the layers of their mean error: what the authors' example ranks networks by.
        loss_before: at t₂.
        loss_predicted: at the predicted weights; not finite where those are not.
        loss_trained: where training is at t₂ + T.
        answer: the prediction itself.
    """

    errors: Array
    distances: Array
    start: Array
    mean_error: float
    loss_before: float
    loss_predicted: float
    loss_trained: float
    answer: Answer

    @property
    def relative_error(self) -> float:
        """|predicted - true| / |true - w(t₂)|, lengths over the whole network; infinite where not finite."""
        if not np.isfinite(self.errors).all():
            return np.inf
        scale = self.errors.max() or 1.0  # squares of what is about to overflow would do so
        return float(scale * np.linalg.norm(self.errors / scale) / np.linalg.norm(self.distances))

    @property
    def raised(self) -> bool:
        """Whether the loss is higher than before, or no number."""
        return not self.loss_predicted <= self.loss_before

    @property
    def beats_training(self) -> bool:
        """Whether the loss is lower than training's."""
        return self.loss_predicted < self.loss_trained


def score(
    layout: Layout, answer: Answer, start: Array, true: Array, losses: tuple[float, float, float]
) -> Score:
    """Compare an answer with the `true` weights (size); `losses` at `start`, predicted and true weights."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(answer.weights - true)
        layers = textbook.partition_blocks(layout, "layer")
        mean_error = float(np.mean([errors[layer].mean() for layer in layers]))
    errors = np.where(np.isfinite(errors), errors, np.inf)
    mean_error = mean_error if np.isfinite(mean_error) else np.inf
    return Score(errors, np.abs(true - start), start, mean_error, *losses, answer)


def row(
    label: str,
    scores: Sequence[Score],
    plain: Cost,
    formula: Sequence[Score] = (),
    within: Sequence[Score] = (),
) -> str:
    """One row of the table.

    Args:
        label: what predicted.
        scores: of the networks, in order.
        plain: what T optimizer steps of one network cost.
        formula: the paper's own prediction of the same networks, to compare with.
        within: the same, where what no earlier snapshot spans stays.
    """
    quartiles = _quantiles([each.relative_error for each in scores])
    before, predicted, trained = (
        _quantiles([getattr(each, name) for each in scores])[1]
        for name in ("loss_before", "loss_predicted", "loss_trained")
    )
    cost = _median_cost([each.answer.cost for each in scores])
    pushes = [each.answer.push_cost for each in scores if each.answer.push_cost is not None]
    best = sorted(scores, key=lambda each: each.mean_error)[: max(1, round(_BEST_SHARE * len(scores)))]
    cells = [
        label,
        f"{_number(quartiles[1])} ({_number(quartiles[0])} … {_number(quartiles[2])})",
        f"{_number(_error_to_growth(scores))} / {_number(_error_to_growth(best))}",
        f"{_number(before)} → {_number(predicted)} ({_number(trained)})",
        f"{sum(each.raised for each in scores)} of {len(scores)}",
        f"{sum(each.beats_training for each in scores)} of {len(scores)}",
        _seconds(cost) + (f" + {_seconds(_median_cost(pushes))} for the pushes" if pushes else ""),
        f"{plain.wall / cost.wall:.3g} ({plain.cpu / cost.cpu:.3g})" if cost.wall and cost.cpu else "",
        _agreement(scores, formula) + (f" ({_agreement(scores, within)})" if within else ""),
    ]
    return f"| {' | '.join(cells)} |"


def conditioning(window: Array, blocks: list[NDArray[np.intp]]) -> tuple[float, float, float]:
    """Median and largest condition number of the blocks' inputs, largest spectral radius of their operators."""
    operators = [textbook.BlockOperator.fit(window[:, block]) for block in blocks]
    conditions = [operator.condition for operator in operators if operator.rank]
    radius = max(operator.spectral_radius() for operator in operators)
    return float(np.median(conditions)), max(conditions), radius


def _agreement(ours: Sequence[Score], theirs: Sequence[Score]) -> str:
    """Median of `_apart`; ours may be fewer."""
    apart = [_apart(*pair) for pair in zip(ours, theirs, strict=False)]
    return _number(float(np.median(apart))) if apart else ""


def _apart(ours: Score, theirs: Score) -> float:
    """Distance between two predictions over the displacement of the second; infinite where one overflowed."""
    if not (np.isfinite(ours.answer.weights).all() and np.isfinite(theirs.answer.weights).all()):
        return np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.linalg.norm(ours.answer.weights - theirs.answer.weights)
        apart = float(difference / np.linalg.norm(theirs.answer.weights - theirs.start))
    return apart if np.isfinite(apart) else np.inf


def _error_to_growth(scores: Sequence[Score]) -> float:
    """Median error of all weights of all these networks over their median distance."""
    errors = np.median(np.concatenate([each.errors for each in scores]))
    return float(errors / np.median(np.concatenate([each.distances for each in scores])))


def _quantiles(values: Sequence[float]) -> Array:
    """Lower quartile, median and upper quartile, each of them one of the values; NaN counts as infinite."""
    numbers = [value if np.isfinite(value) else np.inf for value in values]
    return np.quantile(numbers, (0.25, 0.5, 0.75), method="nearest")


def _median_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(
        float(np.median([cost.wall for cost in costs])), float(np.median([cost.cpu for cost in costs]))
    )


def _seconds(cost: Cost) -> str:
    return f"{cost.wall:.2g} ({cost.cpu:.2g})"


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "overflow"
