"""What a fit needs to be told. Plain values, checked by whoever reads them from users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Observable", "OperatorSettings", "RankRule", "TooFewSnapshotsError"]

Observable = Literal["velocity", "state"]
RankRule = Literal["auto", "fixed", "energy"]


class TooFewSnapshotsError(ValueError):
    """The window holds fewer snapshots than one input and one output of the operator.

    Attributes:
        held: weight snapshots in the window.
        needed: 3 for velocity, 2 for state.
    """

    def __init__(self, held: int, needed: int) -> None:
        """Keep both numbers, for the answer to the caller."""
        super().__init__(f"{held} snapshots held, {needed} needed")
        self.held = held
        self.needed = needed


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How operators are fitted (design §2).

    Attributes:
        observable: what the operator advances by one stride: ``"velocity"``, differences of consecutive
            snapshots, or ``"state"``, the weights themselves (Dogra & Redman 2020, arXiv 2006.02361, section
            3).
        rank_rule: how the rank is found, see `rank`.
        rank: with ``"fixed"``, the most modes to keep, >= 1.
        energy: with ``"energy"``, the share of the squared singular values to keep, in (0, 1].
        ridge: Tikhonov ridge in units of the largest singular value, >= 0.
        stabilize: move eigenvalues outside the unit disc onto it.

    Raises:
        ValueError: for values outside these ranges.
    """

    observable: Observable = "velocity"
    rank_rule: RankRule = "auto"
    rank: int = 1
    energy: float = 0.9999
    ridge: float = 1e-6
    stabilize: bool = True

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.observable not in ("velocity", "state"):
            raise ValueError(f"unknown observable {self.observable!r}")
        if self.rank_rule not in ("auto", "fixed", "energy"):
            raise ValueError(f"unknown rank rule {self.rank_rule!r}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if not 0.0 < self.energy <= 1.0:
            raise ValueError(f"energy must lie in (0, 1], not {self.energy}")
        if not 0.0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be finite and >= 0, not {self.ridge}")
