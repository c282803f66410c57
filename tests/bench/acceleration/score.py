"""From records of runs to ratios: how many fewer steps, how much less time, how much lower a loss than plain training.

Everything here is pure. A *cell* is a task, an optimizer, a method and a seed; its *reference* is the plain run of the
same task, optimizer and seed. Ratios are plain's figure over the method's, so above 1 the method is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from koopcast_server.demo.suite.curves import LossCurve
from koopcast_server.demo.suite.optimizers import OPTIMIZERS

__all__ = [
    "HARM",
    "HEADLINE",
    "KINDS",
    "METHODS",
    "OURS",
    "PLAIN",
    "SHARES",
    "SHOWN_SHARE",
    "Array",
    "Key",
    "Plan",
    "Record",
    "Score",
    "best_so_far",
    "fact",
    "first_crossing",
    "loss_at",
    "scores_of",
]

Record = Mapping[str, Any]
"""One line of ``results/<task>.jsonl``."""
Array = NDArray[np.float64]
Key = tuple[str, str, int]
"""Task, optimizer, seed."""

HEADLINE: Final = ("sgd-momentum", "adamw", "adadelta")
"""Optimizers of the headline table; the others are run at one seed."""
KINDS: Final = ("deterministic", "stochastic")
PLAIN: Final = "plain"
OURS: Final = ("ours", "ours-no-probe")
METHODS: Final = {
    PLAIN: "plain",
    "lbfgs": "L-BFGS",
    "ema": "EMA",
    "lawa": "LAWA",
    "lookahead": "Lookahead",
    "snoo": "SNOO",
    "linear": "linear",
    "linear-mask": "linear, mask",
    "nodes": "node operators",
    "pdt": "PDT",
    "ours": "koopcast",
    "ours-no-probe": "koopcast, no probe",
}
"""All methods in the order of tables, and what tables and plots call them."""

SHARES: Final = (50, 75, 100)
"""The targets: plain's best loss within so many per cent of its budget."""
SHOWN_SHARE: Final = 75
"""The target of the headline."""
HARM: Final = 0.97
"""A ratio below this one is harm."""

_LEAST_STEPS: Final = 1.0
_LEAST_SECONDS: Final = 1e-6


@dataclass(frozen=True)
class Plan:
    """Which cells there should be, so that missing ones can be told.

    Attributes:
        kinds: every task's kind, one of `KINDS`, in the order of tables.
        headline: optimizers of the headline, run at all of `seeds`; the timed cells are theirs, at the first seed.
        others: optimizers run at the first seed only.
        methods: names, see `METHODS`.
        seeds: of the headline optimizers.
    """

    kinds: Mapping[str, str]
    headline: Sequence[str] = HEADLINE
    others: Sequence[str] = tuple(name for name in OPTIMIZERS if name not in HEADLINE)
    methods: Sequence[str] = tuple(METHODS)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)

    @property
    def optimizers(self) -> tuple[str, ...]:
        """All of them, those of the headline first."""
        return (*self.headline, *self.others)

    def tasks(self, kind: str | None = None) -> list[str]:
        """Tasks of a kind, or all."""
        return [task for task, its in self.kinds.items() if kind in (None, its)]

    def due(self, tasks: Iterable[str], optimizers: Iterable[str], *, timed: bool = False) -> list[Key]:
        """The cells that every method should have for these tasks and optimizers."""
        chosen = list(optimizers)
        return [
            (task, optimizer, seed)
            for task in tasks
            for optimizer in chosen
            for seed in (self.seeds if optimizer in self.headline and not timed else self.seeds[:1])
            if not timed or optimizer in self.headline
        ]


@dataclass(frozen=True)
class Score:
    """What one cell gained or lost against its reference.

    Attributes:
        task: its name.
        optimizer: its name.
        method: its name.
        seed: of the first weights and the batches.
        steps: by share in per cent: plain's counted steps to that target over the method's.
        reached: by share: whether the method got there within the budget.
        seconds: like `steps`, in seconds; empty without timed runs of both.
        quality: plain's best loss within the budget over the method's.
        diverged: whether the run ended at a loss that is not finite.
        facts: what the method told of itself.
    """

    task: str
    optimizer: str
    method: str
    seed: int
    steps: Mapping[int, float]
    reached: Mapping[int, bool]
    seconds: Mapping[int, float]
    quality: float
    diverged: bool
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> Key:
        """Task, optimizer, seed."""
        return self.task, self.optimizer, self.seed


def scores_of(records: Iterable[Record]) -> list[Score]:
    """Compare every run with its reference; a cell whose reference is missing or hopeless has no score.

    Steps, losses and facts come from the untimed run, or from the timed one where that is all there is; seconds only
    from timed runs of both.

    Raises:
        ValueError: a run had another budget than its reference.
    """
    runs: dict[tuple[Any, ...], Record] = {_cell(each, bool(each["timed"])): each for each in records}
    return list(_scores(runs))


def _cell(record: Record, timed: bool) -> tuple[Any, ...]:
    return record["task"], record["optimizer"], record["seed"], record["method"], timed


def _scores(runs: Mapping[tuple[Any, ...], Record]) -> Iterator[Score]:
    for key in dict.fromkeys(key[:4] for key in runs):
        run = runs.get((*key, False)) or runs[(*key, True)]
        plain = runs.get((*key[:3], PLAIN, False)) or runs.get((*key[:3], PLAIN, True))
        if plain is None or not math.isfinite(best_so_far(plain)[-1]):
            continue
        if run["budget_steps"] != plain["budget_steps"]:
            raise ValueError(
                f"{key}: {run['budget_steps']} steps, and plain training had {plain['budget_steps']}"
            )
        timed, timed_plain = runs.get((*key, True)), runs.get((*key[:3], PLAIN, True))
        comparable = timed and timed_plain and math.isfinite(best_so_far(timed_plain)[-1])
        yield _score(run, plain, (timed, timed_plain) if timed and timed_plain and comparable else None)


def _score(run: Record, plain: Record, timed: tuple[Record, Record] | None) -> Score:
    budget = float(plain["budget_steps"])
    steps, reached, seconds = {}, {}, {}
    for share in SHARES:
        steps[share], reached[share] = _ratio(run, plain, share, "counted")
        if timed:
            seconds[share], _ = _ratio(*timed, share, "seconds")
    # A run without one finite loss is as good as its first weights, which are the reference's.
    own, first = loss_at(run, budget), best_so_far(plain)[0]
    quality = loss_at(plain, budget) / (own if math.isfinite(own) else first)
    names = run["task"], run["optimizer"], run["method"], run["seed"]
    return Score(*names, steps, reached, seconds, quality, bool(run["diverged"]), run.get("facts") or {})


def _ratio(run: Record, plain: Record, share: int, unit: str) -> tuple[float, bool]:
    """Plain's cost of the target over the method's, and whether the method reached it.

    Where it never did, its whole budget is lost and plain training follows: the cost is the budget and plain's cost.
    """
    target = loss_at(plain, plain["budget_steps"] * share / 100)
    least = _LEAST_STEPS if unit == "counted" else _LEAST_SECONDS
    reference = first_crossing(plain, target, unit)
    assert reference is not None  # its own loss
    reference = max(reference, least)
    cost = first_crossing(run, target, unit)
    if cost is None:
        return reference / (_whole(run, unit) + reference), False
    return reference / max(cost, least), True


def _whole(run: Record, unit: str) -> float:
    """What the whole budget costs, also where a run that diverged ended before it."""
    budget = float(run["budget_steps"])
    if unit == "counted":
        return budget
    return float(run["seconds_total"]) * max(1.0, budget / max(float(run["counted_steps"]), 1.0))


def best_so_far(record: Record) -> Array:
    """The least loss up to each evaluation; infinite before the first finite one, and where there is none at all."""
    return _curve(record).best


def loss_at(record: Record, counted: float) -> float:
    """The best loss within so many counted steps, between evaluations by a straight line in log(loss).

    But that of the earlier one where they lie far apart. Interpolated also at the end: the last evaluation may lie some
    probes beyond the budget.
    """
    return _curve(record).within(counted)


def first_crossing(record: Record, target: float, unit: str) -> float | None:
    """Where the best loss first is at `target` or below, between evaluations by a straight line in log(loss).

    But at the later one where they lie far apart, since a method spent many evaluations in between at once: nobody had
    those weights before it ended.

    Args:
        record: of a run.
        target: a loss.
        unit: ``"counted"`` (steps) or ``"seconds"``.

    Returns:
        Counted steps or seconds; None where the run never gets there.
    """
    return _curve(record).crossing(target, record[unit])


def _curve(record: Record) -> LossCurve:
    return LossCurve(record["counted"], record["loss"], record["budget_steps"])


def fact(facts: Mapping[str, Any], name: str) -> Any:
    """One of a method's facts, also one of its statistics; None where it tells none."""
    statistics = facts.get("stats")
    return facts.get(name, statistics.get(name) if isinstance(statistics, Mapping) else None)
