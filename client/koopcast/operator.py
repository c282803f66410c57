"""Settings of a Koopman operator, as users write them. No numerics here: those are the service's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "MAX_RANK",
    "MAX_SEGMENT_BLOCK",
    "MAX_WINDOW",
    "Debias",
    "Observable",
    "Operator",
    "Partition",
    "Rank",
    "Ridge",
]

MAX_WINDOW: Final = 1024
"""Most weight snapshots a window may hold."""
MAX_RANK: Final = 1024
"""Most modes an operator may have."""
MAX_DELAYS: Final = 64
"""Most earlier vectors that delay embedding may stack."""
MAX_SEGMENT_BLOCK: Final = 2048
"""Most parameters a block may have where ``window="segment"`` accumulates its least-squares problem."""

_MAX_RIDGE: Final = 1e100
"""Far beyond sense; its square is still a number."""
_SEGMENT_SNAPSHOTS: Final = 12
"""Snapshots that the hook waits for where the window is a whole segment, which is never full."""

Observable = Literal["velocity", "state"]
Partition = Literal["network", "tensor", "node", "quasi_node", "weight"]
Rank = int | Literal["auto", "energy", "gavish-donoho", "backtest"]
"""How a rank is asked for: a number of modes, or the rule that finds it."""
Ridge = float | Literal["backtest"]
"""A ridge, or the rule that finds it."""
Debias = Literal["none", "total-least-squares", "forward-backward", "backtest"]

_MINIMUM_WINDOW: Mapping[str, int] = {"velocity": 3, "state": 2}
_PARTITIONS: Final = ("network", "tensor", "node", "quasi_node", "weight")
_RANK_RULES: Final = ("auto", "energy", "gavish-donoho", "backtest")
_DEBIASES: Final = ("none", "total-least-squares", "forward-backward", "backtest")
_PRESETS: Final = ("dogra-redman",)


@dataclass(frozen=True, slots=True)
class Operator:
    """How a job's Koopman operators are made.

    Attributes:
        observable: ``"velocity"`` fits differences of consecutive snapshots (the eigenvalue 1 is then exact and
            what is predicted is a displacement); ``"state"`` fits the weights themselves (Dogra & Redman, NeurIPS
            2020, section 3).
        partition: which weights share an operator: ``"network"``, all; ``"tensor"``, those of a tensor;
            ``"node"``, a unit's incoming weights and its bias; ``"quasi_node"``, so many of a unit's inputs (see
            `quasi_node_inputs`); ``"weight"``, each one alone.
        window: weight snapshots held, 3 (velocity) or 2 (state) to 1024; or ``"segment"``: all snapshots since the
            segment began count, accumulated as they come, and none of them is stored (for blocks of at most 2048
            parameters, such as nodes).
        rank: ``"auto"`` (energy 1 - 1e-10, at most half the window), ``"energy"`` (see `energy`),
            ``"gavish-donoho"`` (optimal threshold for unknown noise), ``"backtest"`` (for each block and horizon the
            rank that would have served best), or a number of modes.
        energy: with ``rank="energy"``, the share of the squared singular values that is kept, in (0, 1]; 1 keeps all
            that float64 can tell from zero, as a pseudoinverse does.
        ridge: Tikhonov ridge as a fraction of the window's largest singular value, 0 to 1e100; or ``"backtest"``.
        stabilize: move eigenvalues outside the unit disc onto it.
        quasi_node_inputs: with ``partition="quasi_node"``, inputs in a chunk, at least 1.
        forgetting: weight of a pair of vectors relative to its successor's, in (0, 1]; 1: all alike.
        delays: delay embedding: so many earlier vectors are stacked below each one (Hankel), 0 to 64.
        debias: correction for noise in the snapshots: ``"none"``, ``"total-least-squares"``,
            ``"forward-backward"`` (Dawson et al. 2016), or ``"backtest"``.
        max_jump: trust region: a block's displacement is shortened to at most so many times the path it went within
            the window. None: no bound.
        mask_tolerance: move a weight only where its displacement has the sign of its last observed change and is at
            least as large, and at most ``1 + mask_tolerance`` times as large (Predictive Differential Training). None:
            no mask.
        always_move: move blocks whatever their back-test says; by default those that do no better than staying
            decline.

    Raises:
        ArgumentValueError, ArgumentTypeError: on construction, naming the field.
    """

    observable: Observable = "velocity"
    partition: Partition = "network"
    window: int | Literal["segment"] = 12
    rank: Rank = "auto"
    energy: float = 0.9999
    ridge: Ridge = 1e-6
    stabilize: bool = True
    quasi_node_inputs: int | None = None
    forgetting: float = 1.0
    delays: int = 0
    debias: Debias = "none"
    max_jump: float | None = None
    mask_tolerance: float | None = None
    always_move: bool = False

    def __post_init__(self) -> None:
        """Refuse what no service could use."""
        _one_of("observable", self.observable, tuple(_MINIMUM_WINDOW))
        self._check_partition()
        self._check_window()
        self._check_rank()
        if isinstance(self.ridge, str):
            _one_of("ridge", self.ridge, ("backtest",), also="a number")
        else:
            _within("ridge", self.ridge, 0.0, _MAX_RIDGE)
        _one_of("debias", self.debias, _DEBIASES)
        _fraction("forgetting", self.forgetting)
        for field in ("max_jump", "mask_tolerance"):
            if getattr(self, field) is not None:
                _within(field, getattr(self, field), 0.0, _MAX_RIDGE)
        if self.max_jump == 0:
            raise ArgumentValueError("max_jump must be above 0; None is no bound", field="max_jump")
        for field in ("stabilize", "always_move"):
            if not isinstance(getattr(self, field), bool):
                raise ArgumentTypeError(f"{field} must be a bool, not {getattr(self, field)!r}", field=field)

    @classmethod
    def preset(cls, name: Literal["dogra-redman"]) -> Self:
        """Settings that are known by a name.

        ``"dogra-redman"`` is the method of Dogra & Redman (NeurIPS 2020, section 3): one operator of the weights for
        each node, ``U = F' pinv(F)`` over all steps of the segment, no truncation, no ridge, no stabilisation, and
        every node is moved. It reproduces the paper; the defaults predict better.

        Raises:
            ArgumentValueError: an unknown name.
        """
        _one_of("preset", name, _PRESETS)
        return cls(
            observable="state",
            partition="node",
            window="segment",
            rank="energy",
            energy=1.0,
            ridge=0.0,
            stabilize=False,
            always_move=True,
        )

    @property
    def minimum_snapshots(self) -> int:
        """Weight snapshots needed before the first prediction: 3 for velocity, 2 for state, one more for each delay."""
        return _MINIMUM_WINDOW[self.observable] + self.delays

    @property
    def snapshots_wanted(self) -> int:
        """Weight snapshots of a full window; of a whole segment, so many that asking makes sense."""
        return max(_SEGMENT_SNAPSHOTS, self.minimum_snapshots) if self.window == "segment" else self.window

    def _check_partition(self) -> None:
        _one_of("partition", self.partition, _PARTITIONS)
        inputs = self.quasi_node_inputs
        if self.partition == "quasi_node":
            if inputs is None:
                raise ArgumentValueError(
                    'partition="quasi_node" needs quasi_node_inputs, the inputs in a chunk',
                    field="quasi_node_inputs",
                )
            _whole_number("quasi_node_inputs", inputs, 1, 2**31)
        elif inputs is not None:
            raise ArgumentValueError(
                f'quasi_node_inputs goes with partition="quasi_node", not {self.partition!r}',
                field="quasi_node_inputs",
            )

    def _check_window(self) -> None:
        _whole_number("delays", self.delays, 0, MAX_DELAYS)
        if isinstance(self.window, str):
            _one_of("window", self.window, ("segment",), also="a number of snapshots")
            if self.delays:
                raise ArgumentValueError(
                    'delays need a window of snapshots, which window="segment" does not store', field="delays"
                )
            return
        _whole_number("window", self.window, self.minimum_snapshots, MAX_WINDOW)

    def _check_rank(self) -> None:
        if isinstance(self.rank, str):
            _one_of("rank", self.rank, _RANK_RULES, also="a number of modes")
        else:
            _whole_number("rank", self.rank, 1, MAX_RANK)
        _fraction("energy", self.energy)


def _one_of(field: str, value: Any, allowed: tuple[str, ...], *, also: str = "") -> None:
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        choice = f"one of {names}" if len(allowed) > 1 else names
        wanted = f"{also} or {choice}" if also else choice
        raise ArgumentValueError(f"{field} must be {wanted}, not {value!r}", field=field)


def _whole_number(field: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{field} must be a whole number, not {value!r}", field=field)
    if not least <= value <= most:
        raise ArgumentValueError(f"{field} must lie in {least}..{most}, not {value}", field=field, limit=most)


def _within(field: str, value: Any, least: float, most: float) -> None:
    _real_number(field, value)
    if not (math.isfinite(value) and least <= value <= most):
        raise ArgumentValueError(f"{field} must lie in {least:g}..{most:g}, not {value}", field=field)


def _fraction(field: str, value: Any) -> None:
    _real_number(field, value)
    if not 0.0 < value <= 1.0:
        raise ArgumentValueError(f"{field} must lie in (0, 1], not {value}", field=field)


def _real_number(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{field} must be a number, not {value!r}", field=field)
