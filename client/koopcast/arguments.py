"""Checks of what users pass, made before any call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.operator import Operator

__all__ = ["check_finite", "check_horizons", "check_operators", "check_whole", "loss_or_none"]

_FARTHEST: Final = 2.0**53
"""Beyond it, steps cannot be told apart in float64."""


def check_whole(field: str, value: Any, least: int, most: int = 2**53) -> int:
    """`value` as an int, if it is a whole number in least..most.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentTypeError(f"{field} must be a whole number, not {value!r}", field=field)
    if not least <= value <= most:
        limit = f"2**{most.bit_length() - 1}" if most & (most - 1) == 0 else most
        raise ArgumentValueError(f"{field} must lie in {least}..{limit}, not {value}", field=field)
    return int(value)


def check_finite(field: str, value: Any) -> float:
    """`value` as a float, if it is one finite number.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is not.
    """
    number = _number(field, value)
    if not math.isfinite(number):
        raise ArgumentValueError(f"{field} must be finite, not {value}", field=field)
    return number


def check_horizons(horizon: Any) -> list[float]:
    """One horizon, or a sequence of them, as a list.

    Raises:
        ArgumentTypeError, ArgumentValueError: none, or one that is not > 0 and at most 2**53.
    """
    many = isinstance(horizon, Sequence) and not isinstance(horizon, str)
    numbers = [check_finite("horizon", value) for value in (horizon if many else [horizon])]
    if not numbers:
        raise ArgumentValueError("at least one horizon is needed", field="horizon")
    for number in numbers:
        if not 0 < number <= _FARTHEST:
            raise ArgumentValueError(
                f"horizon must be > 0 and at most 2**53 trainer steps, not {number}", field="horizon"
            )
    return numbers


def check_operators(operators: Any) -> list[Operator]:
    """The operators of one call as a list; none of them for None.

    Raises:
        ArgumentTypeError, ArgumentValueError: an empty sequence, or what is no sequence of operators.
    """
    if operators is None:
        return []
    if not isinstance(operators, Sequence) or not all(isinstance(given, Operator) for given in operators):
        raise ArgumentTypeError(
            f"operators must be a sequence of koopcast.Operator, not {operators!r}", field="operators"
        )
    if not operators:
        raise ArgumentValueError("operators must hold at least one Operator, or be None", field="operators")
    return list(operators)


def loss_or_none(field: str, value: Any) -> float | None:
    """A loss as a float, which may be NaN or infinite; None stays None.

    Raises:
        ArgumentTypeError: it is no number.
    """
    return None if value is None else _number(field, value)


def _number(field: str, value: Any) -> float:
    if (
        isinstance(value, bool | str | bytes)
        or not hasattr(value, "__float__")
        or getattr(value, "ndim", 0) != 0
    ):
        raise ArgumentTypeError(f"{field} must be a number, not {value!r}", field=field)
    try:
        return float(value)
    except OverflowError:
        raise ArgumentValueError(f"{field} must be finite: it is beyond a float", field=field) from None
