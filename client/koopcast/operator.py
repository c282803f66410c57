"""Settings of a Koopman operator, as users write them. No numerics here: those are the service's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["MAX_WINDOW", "Operator"]

MAX_WINDOW: Final = 64
"""Most weight snapshots a window may hold."""

_MAX_RIDGE: Final = 1e100
"""Far beyond sense; its square is still a number."""

Observable = Literal["velocity", "state"]
Partition = Literal["network", "tensor"]
Rank = int | Literal["auto", "energy"]
"""How a rank is asked for: a number of modes, or the rule that finds it."""

_MINIMUM_WINDOW: Mapping[str, int] = {"velocity": 3, "state": 2}
_PARTITIONS: Final = ("network", "tensor")


@dataclass(frozen=True, slots=True)
class Operator:
    """How a job's Koopman operators are made.

    Attributes:
        observable: ``"velocity"`` fits differences of consecutive snapshots (the eigenvalue 1 is then exact and
            what is predicted is a displacement); ``"state"`` fits the weights themselves (Dogra & Redman, NeurIPS
            2020, section 3).
        partition: ``"network"``, one operator for all parameters, or ``"tensor"``, one for each tensor.
        window: weight snapshots held, 3 (velocity) or 2 (state) to 64.
        rank: ``"auto"`` (energy 1 - 1e-8, at most half the window), ``"energy"`` (see `energy`), or a number of
            modes.
        energy: with ``rank="energy"``, the share of the squared singular values that is kept, in (0, 1].
        ridge: Tikhonov ridge as a fraction of the window's largest singular value, 0 to 1e100.
        stabilize: move eigenvalues outside the unit disc onto it.

    Raises:
        ArgumentValueError, ArgumentTypeError: on construction, naming the field.
    """

    observable: Observable = "velocity"
    partition: Partition = "network"
    window: int = 12
    rank: Rank = "auto"
    energy: float = 0.9999
    ridge: float = 1e-6
    stabilize: bool = True

    def __post_init__(self) -> None:
        """Refuse what no service could use."""
        _one_of("observable", self.observable, tuple(_MINIMUM_WINDOW))
        _one_of("partition", self.partition, _PARTITIONS)
        least = _MINIMUM_WINDOW[self.observable]
        _whole_number("window", self.window, least, MAX_WINDOW)
        if isinstance(self.rank, str):
            _one_of("rank", self.rank, ("auto", "energy"))
        else:
            _whole_number("rank", self.rank, 1, MAX_WINDOW)
        _real_number("energy", self.energy)
        if not 0.0 < self.energy <= 1.0:
            raise ArgumentValueError(f"energy must lie in (0, 1], not {self.energy}", field="energy")
        _real_number("ridge", self.ridge)
        if not (math.isfinite(self.ridge) and 0.0 <= self.ridge <= _MAX_RIDGE):
            raise ArgumentValueError(f"ridge must lie in 0..{_MAX_RIDGE:g}, not {self.ridge}", field="ridge")
        if not isinstance(self.stabilize, bool):
            raise ArgumentTypeError(f"stabilize must be a bool, not {self.stabilize!r}", field="stabilize")

    @property
    def minimum_snapshots(self) -> int:
        """Weight snapshots needed before the first prediction: 3 for velocity, 2 for state."""
        return _MINIMUM_WINDOW[self.observable]


def _one_of(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise ArgumentValueError(f"{field} must be one of {names}, not {value!r}", field=field)


def _whole_number(field: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{field} must be a whole number, not {value!r}", field=field)
    if not least <= value <= most:
        raise ArgumentValueError(f"{field} must lie in {least}..{most}, not {value}", field=field, limit=most)


def _real_number(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{field} must be a number, not {value!r}", field=field)
