"""Checks what the user gave to `attach`, before anything is attached. All raise ArgumentTypeError, ArgumentValueError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.leader import QuestionSettings
from koopcast.hook.loop import unwrapped
from koopcast.hook.policy import BACKTESTED_HORIZON_STRIDES, DEFAULT_OPERATORS, PROBED_HORIZON_STRIDES
from koopcast.operator import Operator

__all__ = [
    "MODES",
    "Mode",
    "Timing",
    "check_callables",
    "check_choice",
    "check_flags",
    "check_question",
    "check_refine",
    "check_timing",
    "check_trainer",
    "check_writer",
]

Mode = Literal["auto", "observe", "off"]
MODES: Final[tuple[Mode, ...]] = ("auto", "observe", "off")

MAX_OPERATORS: Final = 16
LONGEST_MEETING_SECONDS: Final = 86400.0
MAX_HORIZONS: Final = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happen.

    Attributes:
        every: optimizer steps between snapshots.
        lag: steps from a question to its decision.
        wait_seconds: longest wait of an attempt.
        averaging: weights in the mean that is a snapshot.
        meeting_seconds: longest wait of a rank for the others.
    """

    every: int
    lag: int
    wait_seconds: float
    averaging: int
    meeting_seconds: float


def check_trainer(model: Any, optimizer: Any) -> torch.optim.Optimizer:
    """A module and a real optimizer, which is returned: of Accelerate's wrapper the one inside."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}", field="model")
    inside = unwrapped(optimizer)
    if not isinstance(inside, torch.optim.Optimizer):
        raise ArgumentTypeError(
            f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}; give a wrapper's own "
            "optimizer (for instance its .optimizer)",
            field="optimizer",
        )
    return inside


def check_choice(field: str, given: Any, choices: Sequence[str]) -> None:
    """One of some words."""
    if given not in choices:
        raise ArgumentValueError(f"{field} must be one of {', '.join(choices)}, not {given!r}", field=field)


def check_writer(writer: Any) -> None:
    """Something scalars can be written to, or None."""
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise ArgumentTypeError(
            "tensorboard must have a method add_scalar(tag, value, global_step), like "
            f"torch.utils.tensorboard.SummaryWriter, not {writer!r}",
            field="tensorboard",
        )


def check_callables(**callables: Any) -> None:
    """Functions, or None."""
    for field, given in callables.items():
        if given is not None and not callable(given):
            raise ArgumentTypeError(f"{field} must be callable, not {given!r}", field=field)


def check_flags(**flags: Any) -> None:
    """True or False."""
    for field, given in flags.items():
        if not isinstance(given, bool):
            raise ArgumentTypeError(f"{field} must be a bool, not {given!r}", field=field)


def check_timing(every: Any, lag: Any, wait_seconds: Any, average: Any, meeting_seconds: Any) -> Timing:
    """When things happen."""
    for field, value, least in (("every", every, 1), ("lag", lag, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{field} must be a whole number of steps, not {value!r}", field=field)
        if value < least:
            raise ArgumentValueError(f"{field} must be at least {least}, not {value}", field=field)
    if isinstance(wait_seconds, bool) or not isinstance(wait_seconds, int | float):
        raise ArgumentTypeError(f"wait_seconds must be a number, not {wait_seconds!r}", field="wait_seconds")
    if not (math.isfinite(wait_seconds) and wait_seconds >= 0):
        raise ArgumentValueError(
            f"wait_seconds must be finite and >= 0, not {wait_seconds}", field="wait_seconds"
        )
    check_flags(average=average)
    if isinstance(meeting_seconds, bool) or not isinstance(meeting_seconds, int | float):
        raise ArgumentTypeError(
            f"meeting_seconds must be a number, not {meeting_seconds!r}", field="meeting_seconds"
        )
    if not 0 < meeting_seconds <= LONGEST_MEETING_SECONDS:
        raise ArgumentValueError(
            f"meeting_seconds must lie in 0..{LONGEST_MEETING_SECONDS:g}, not {meeting_seconds}",
            field="meeting_seconds",
        )
    return Timing(every, lag, float(wait_seconds), every if average else 1, float(meeting_seconds))


def check_refine(refine: Any) -> None:
    """A number of evaluations, or None."""
    if refine is None:
        return
    if isinstance(refine, bool) or not isinstance(refine, int):
        raise ArgumentTypeError(
            f"refine must be a whole number of evaluations or None, not {refine!r}", field="refine"
        )
    if refine < 0:
        raise ArgumentValueError(f"refine must be at least 0, not {refine}", field="refine")


def check_question(
    operator: Any, operators: Any, horizons: Any, every: int, *, probed: bool
) -> QuestionSettings:
    """What is asked at an attempt, with the defaults filled in."""
    if operator is not None and not isinstance(operator, Operator):
        raise ArgumentTypeError(f"operator must be a koopcast.Operator, not {operator!r}", field="operator")
    if operators is None:
        operators = DEFAULT_OPERATORS if operator is None else (operator,)
    if not isinstance(operators, Sequence) or not all(isinstance(one, Operator) for one in operators):
        raise ArgumentTypeError("operators must be a sequence of koopcast.Operator", field="operators")
    if not 1 <= len(operators) <= MAX_OPERATORS:
        raise ArgumentValueError(
            f"operators must hold 1 to {MAX_OPERATORS}, not {len(operators)}", field="operators"
        )
    strides = PROBED_HORIZON_STRIDES if probed else BACKTESTED_HORIZON_STRIDES
    steps = [every * count for count in strides] if horizons is None else horizons
    if not isinstance(steps, Sequence) or not all(_is_number(step) for step in steps):
        raise ArgumentTypeError("horizons must be a sequence of numbers of trainer steps", field="horizons")
    if not 1 <= len(steps) <= MAX_HORIZONS or not all(math.isfinite(step) and step > 0 for step in steps):
        raise ArgumentValueError(
            f"horizons must be 1 to {MAX_HORIZONS} finite numbers of trainer steps > 0, not {steps}",
            field="horizons",
        )
    return QuestionSettings(tuple(float(step) for step in steps), tuple(operators))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
