"""Many cells in one figure: geometric means with bootstrap intervals, worst cases, wins, the index against the gain.

Pure, like `score`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from acceleration.score import HARM, METHODS, OURS, SHARES, SHOWN_SHARE, Array, Key, Plan, Score, fact

__all__ = [
    "MEASURES",
    "Harm",
    "IndexAndGain",
    "Measure",
    "Summary",
    "Wins",
    "harms",
    "indices_and_gains",
    "quality",
    "ratios_of",
    "seconds_to",
    "steps_to",
    "summarise",
    "wins",
]

Measure = Callable[[Score], float | None]
"""A ratio of a cell, None where it has none."""

_UNITS: Final = ("steps", "seconds")
_FINAL: Final = "final loss"
MEASURES: Final = (*(f"{unit}, {share} %" for unit in _UNITS for share in SHARES), _FINAL)
"""What a cell is compared in."""

_DRAWS: Final = 4000
_INTERVAL: Final = (0.025, 0.975)


@dataclass(frozen=True)
class Summary:
    """One method over some cells.

    Attributes:
        mean: geometric mean of the ratio; every pair of task and optimizer weighs the same, whatever its seeds.
        low: lower end of the 95 % bootstrap interval of the mean, see `summarise`.
        high: its upper end.
        worst: the least ratio of any cell.
        worst_at: that cell.
        have: cells that there are.
        due: cells that there should be.
        missed: of those there are, cells that never reached the target of `SHOWN_SHARE`.
    """

    mean: float
    low: float
    high: float
    worst: float
    worst_at: Key
    have: int
    due: int
    missed: int


@dataclass(frozen=True)
class Wins:
    """On how many tasks koopcast has the best geometric mean of all methods.

    Attributes:
        won: tasks where it is ahead of every other method.
        lost: by task where it is not, the method that is ahead.
        due: tasks that there should be; those in neither of the above have no cells of koopcast.
        incomplete: tasks where some method lacks cells, so that the comparison may still change.
    """

    won: Sequence[str]
    lost: Mapping[str, str]
    due: int
    incomplete: Sequence[str]


@dataclass(frozen=True)
class Harm:
    """A cell that koopcast made worse: which, in what, and how much."""

    method: str
    key: Key
    what: str
    ratio: float


@dataclass(frozen=True)
class IndexAndGain:
    """A cell's predictability index, and the steps it gained to the target of `SHOWN_SHARE`."""

    key: Key
    kind: str
    index: float
    gain: float


def steps_to(share: int) -> Measure:
    """Fewer steps to a target."""
    return lambda score: score.steps[share]


def seconds_to(share: int) -> Measure:
    """Less time to a target; timed cells only."""
    return lambda score: score.seconds.get(share)


def quality(score: Score) -> float:
    """Lower loss after the same budget."""
    return score.quality


def summarise(scores: Iterable[Score], method: str, due: Sequence[Key], measure: Measure) -> Summary | None:
    """One method over the cells that are due; cells that are missing are counted, not guessed.

    The interval is a two-stage bootstrap with fixed random numbers: each draw takes as many tasks as there are, with
    replacement and all their optimizers together, and for each of their optimizers as many seeds as there are, with
    replacement. Of a single task (or pair) it is therefore an interval over seeds alone, and of a single cell none.

    Args:
        scores: of all methods.
        method: which of them.
        due: the cells that there should be.
        measure: the ratio.

    Returns:
        None where the method has none of these cells.
    """
    wanted = set(due)
    mine = [one for one in scores if one.method == method and one.key in wanted]
    values = {one.key: value for one in mine if (value := measure(one)) is not None}
    if not values:
        return None
    logs: dict[str, dict[str, list[float]]] = {}
    for (task, optimizer, _), value in sorted(values.items()):
        logs.setdefault(task, {}).setdefault(optimizer, []).append(math.log(value))
    means = [float(np.mean(seeds)) for pairs in logs.values() for seeds in pairs.values()]
    low, high = np.exp(np.quantile(_resampled(logs, method), _INTERVAL))
    worst_at = min(values, key=lambda key: values[key])
    missed = sum(not one.reached[SHOWN_SHARE] for one in mine if one.key in values)
    return Summary(
        mean=math.exp(float(np.mean(means))),
        low=float(low),
        high=float(high),
        worst=values[worst_at],
        worst_at=worst_at,
        have=len(values),
        due=len(wanted),
        missed=missed,
    )


def _resampled(logs: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> Array:
    """Means of the two-stage resamples, (draws,), of log ratios by task, optimizer and seed."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    slots = random.integers(len(logs), size=(_DRAWS, len(logs)))
    total, count = np.zeros(_DRAWS), np.zeros(_DRAWS)
    for number, pairs in enumerate(logs.values()):
        drawn = slots == number
        for seeds in pairs.values():
            taken = random.integers(len(seeds), size=(*slots.shape, len(seeds)))
            total += np.where(drawn, np.asarray(seeds)[taken].mean(-1), 0.0).sum(1)
            count += drawn.sum(1)
    return np.asarray(total / count)


def wins(scores: Sequence[Score], plan: Plan, kind: str, measure: Measure) -> Wins:
    """Task by task, koopcast (with its probe) against all other methods, headline optimizers, geometric means."""
    won, lost, incomplete = [], {}, []
    for task in plan.tasks(kind):
        due = plan.due([task], plan.headline)
        found = {method: summarise(scores, method, due, measure) for method in plan.methods}
        means = {method: one.mean for method, one in found.items() if one is not None}
        if any(one is None or one.have < one.due for one in found.values()):
            incomplete.append(task)
        if OURS[0] not in means:
            continue
        rivals = {method: mean for method, mean in means.items() if method not in OURS}
        best = max(rivals, key=lambda method: rivals[method], default=None)
        if best is None or means[OURS[0]] > rivals[best]:
            won.append(task)
        else:
            lost[task] = best
    return Wins(won, lost, len(plan.tasks(kind)), incomplete)


def ratios_of(score: Score) -> dict[str, float]:
    """All ratios of a cell, by `MEASURES`; those of seconds only where it was timed."""
    measured = zip(_UNITS, (score.steps, score.seconds), strict=True)
    named = {f"{unit}, {share} %": ratio for unit, some in measured for share, ratio in some.items()}
    return {**named, _FINAL: score.quality}


def harms(scores: Iterable[Score]) -> list[Harm]:
    """Every ratio of koopcast below `HARM`, with and without a probe, the worst first."""
    found = []
    for one in scores:
        if one.method not in OURS:
            continue
        ratios = ratios_of(one).items()
        found += [Harm(one.method, one.key, what, ratio) for what, ratio in ratios if ratio < HARM]
    order = list(METHODS)
    return sorted(found, key=lambda harm: (order.index(harm.method), harm.ratio))


def indices_and_gains(scores: Iterable[Score], plan: Plan) -> list[IndexAndGain]:
    """The index and the gain of every cell of koopcast that tells an index."""
    found = []
    for one in scores:
        index = fact(one.facts, "predictability")
        if one.method == OURS[0] and index is not None and one.task in plan.kinds:
            found.append(IndexAndGain(one.key, plan.kinds[one.task], float(index), one.steps[SHOWN_SHARE]))
    return found
