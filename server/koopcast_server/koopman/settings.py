"""What a fit needs to be told. Plain values, checked by whoever reads them from users."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BACKTESTED_DEBIASES",
    "BACKTESTED_RANKS",
    "BACKTESTED_RIDGES",
    "Candidate",
    "Debias",
    "Observable",
    "OperatorSettings",
    "RankRule",
    "TooFewSnapshotsError",
]

Observable = Literal["velocity", "state"]
RankRule = Literal["auto", "fixed", "energy", "gavish_donoho", "backtest"]
Debias = Literal["none", "total_least_squares", "forward_backward"]

BACKTESTED_RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Ranks that compete beside the automatic one, as far as the window allows."""
BACKTESTED_RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
BACKTESTED_DEBIASES: tuple[Debias, ...] = ("none", "total_least_squares", "forward_backward")


class TooFewSnapshotsError(ValueError):
    """The window holds fewer snapshots than one input and one output of the operator.

    Attributes:
        held: weight snapshots in the window.
        needed: 3 for velocity, 2 for state, one more for each delay.
    """

    def __init__(self, held: int, needed: int) -> None:
        """Keep both numbers, for the answer to the caller."""
        super().__init__(f"{held} snapshots held, {needed} needed")
        self.held = held
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to fit: what the back-test ranks.

    Attributes:
        rank_rule: how the rank is found; never ``"backtest"``.
        rank: with ``"fixed"``, the most modes to keep.
        ridge: Tikhonov ridge in units of the largest singular value.
        debias: correction for noise.
    """

    rank_rule: RankRule
    rank: int
    ridge: float
    debias: Debias


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How operators are fitted (design §2).

    Attributes:
        observable: what the operator advances by one stride: ``"velocity"``, differences of consecutive
            snapshots, or ``"state"``, the weights themselves (Dogra & Redman 2020, arXiv 2006.02361, section
            3).
        rank_rule: how the rank is found, see `rank`.
        rank: with ``"fixed"``, the most modes to keep, >= 1.
        energy: with ``"energy"``, the share of the squared singular values to keep, in (0, 1]. 1 keeps all that
            float64 can tell from zero, whatever the snapshots' own precision.
        ridge: Tikhonov ridge in units of the largest singular value, >= 0; None: back-tested.
        stabilize: move eigenvalues outside the unit disc onto it.
        debias: correction for noise; None: back-tested.
        delays: so many earlier vectors are stacked below each one, >= 0.
        forgetting: weight of a pair of vectors relative to its successor's, in (0, 1].
        max_jump: longest displacement of a block as a multiple of its path in the window, > 0; None: no bound.
        always_move: move blocks whatever their back-test says.

    Raises:
        ValueError: for values outside these ranges.
    """

    observable: Observable = "velocity"
    rank_rule: RankRule = "auto"
    rank: int = 1
    energy: float = 0.9999
    ridge: float | None = 1e-6
    stabilize: bool = True
    debias: Debias | None = "none"
    delays: int = 0
    forgetting: float = 1.0
    max_jump: float | None = None
    always_move: bool = False

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.observable not in ("velocity", "state"):
            raise ValueError(f"unknown observable {self.observable!r}")
        if self.rank_rule not in ("auto", "fixed", "energy", "gavish_donoho", "backtest"):
            raise ValueError(f"unknown rank rule {self.rank_rule!r}")
        if self.debias is not None and self.debias not in BACKTESTED_DEBIASES:
            raise ValueError(f"unknown correction for noise {self.debias!r}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if not 0.0 < self.energy <= 1.0:
            raise ValueError(f"energy must lie in (0, 1], not {self.energy}")
        if self.ridge is not None and not 0.0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be finite and >= 0, not {self.ridge}")
        if self.delays < 0:
            raise ValueError(f"delays must be at least 0, not {self.delays}")
        if not 0.0 < self.forgetting <= 1.0:
            raise ValueError(f"forgetting must lie in (0, 1], not {self.forgetting}")
        if self.max_jump is not None and not self.max_jump > 0.0:
            raise ValueError(f"max_jump must be > 0, not {self.max_jump}")

    @property
    def minimum_snapshots(self) -> int:
        """Weight snapshots that make one input and one output: 3 for velocity, 2 for state, one more a delay."""
        return (3 if self.observable == "velocity" else 2) + self.delays

    def keeps_everything(self, candidate: Candidate) -> bool:
        """Whether a candidate asks for no truncation at all: then what looks like noise counts, too."""
        return candidate.rank_rule == "energy" and self.energy == 1.0

    def candidates(self, most_modes: int) -> tuple[Candidate, ...]:
        """The fits that compete; one where nothing is back-tested.

        Args:
            most_modes: the highest rank that the back-test can fit.
        """
        rules: list[tuple[RankRule, int]] = [(self.rank_rule, self.rank)]
        if self.rank_rule == "backtest":
            rules = [
                ("auto", 1),
                *(("fixed", rank) for rank in BACKTESTED_RANKS if rank <= max(1, most_modes)),
            ]
        ridges = BACKTESTED_RIDGES if self.ridge is None else (self.ridge,)
        debiases = BACKTESTED_DEBIASES if self.debias is None else (self.debias,)
        return tuple(
            Candidate(rule, rank, ridge, debias)
            for debias, (rule, rank), ridge in itertools.product(debiases, rules, ridges)
        )
