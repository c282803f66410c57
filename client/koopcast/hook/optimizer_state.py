"""What becomes of the optimizer's state when the weights jump: kept, forgotten, or scaled to the smaller gradients.

State that was gathered before a jump speaks of gradients at another place. Near a minimum the loss falls with the
square of the gradient, so a jump that lowers it from L to L' leaves gradients about r = sqrt(L'/L) times as large:
``rescale`` multiplies means of gradients by r and means of their squares by its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor

__all__ = ["POLICIES", "OptimizerPolicy", "adjust", "gradient_ratio", "halt"]

OptimizerPolicy = Literal["auto", "keep", "reset", "rescale"]
POLICIES: Final[tuple[OptimizerPolicy, ...]] = ("auto", "keep", "reset", "rescale")

_POWERS: Final[Mapping[str, int]] = {
    "exp_avg": 1,  # Adam, AdamW, NAdam, RAdam, Adamax, SparseAdam
    "exp_inf": 1,  # Adamax: a norm of gradients
    "momentum_buffer": 1,  # SGD, Muon; of RMSprop it is one of normalised gradients, see below
    "grad_avg": 1,  # RMSprop, centred
    "prev": 1,  # Rprop: the last gradient
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,  # RMSprop, Adadelta
    "acc_delta": 2,  # Adadelta: squared updates
    "sum": 2,  # Adagrad
    "row_var": 2,  # Adafactor
    "col_var": 2,
    "variance": 2,
}
"""State of torch's optimizers by the power of the gradient it goes with. What is not named here stays as it is: step
counts, step sizes, averages of weights."""


def gradient_ratio(loss_before: float | None, loss_after: float | None) -> float:
    """By how much gradients are smaller after a jump: sqrt(after / before), within 0..1; 1 where losses do not tell."""
    if loss_before is None or loss_after is None:
        return 1.0
    if not (math.isfinite(loss_before) and math.isfinite(loss_after) and loss_before > 0 and loss_after > 0):
        return 1.0
    return min(1.0, math.sqrt(loss_after / loss_before))


def adjust(
    optimizer: torch.optim.Optimizer, moved: Iterable[Tensor], policy: OptimizerPolicy, ratio: float
) -> None:
    """Make the optimizer's state follow a jump of the parameters `moved`.

    Args:
        optimizer: whose state; it must know how to begin anew where `policy` is ``"reset"``.
        moved: parameters whose weights jumped.
        policy: ``"auto"``, ``"keep"``: nothing happens. ``"reset"``: their state is forgotten, step counts included.
            ``"rescale"``: see the module. The history of `torch.optim.LBFGS` spans all parameters and no scale
            makes it right: both forget it.
        ratio: of the gradients after the jump to those before it, for ``"rescale"``.
    """
    if policy in ("auto", "keep"):
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        return
    with torch.no_grad():
        for parameter in moved:
            if parameter not in optimizer.state:
                continue
            if policy == "rescale":
                _rescale(optimizer.state[parameter], ratio)
            elif isinstance(optimizer, torch.optim.Adagrad):
                _restart_adagrad(optimizer, parameter)
            elif type(optimizer).__module__.startswith("torch.optim."):
                del optimizer.state[parameter]  # made anew in the next step
            else:
                _zero(optimizer.state[parameter])  # who knows when other optimizers make theirs


def halt(optimizer: torch.optim.Optimizer, moved: Iterable[Tensor]) -> None:
    """Forget where the parameters `moved` were going, and not how large their gradients are.

    Means of gradients become zero; means of squares and step counts stay, so that steps do not grow.
    """
    with torch.no_grad():
        for parameter in moved:
            for name, value in optimizer.state.get(parameter, {}).items():
                if _POWERS.get(name) == 1 and name != "exp_inf" and isinstance(value, Tensor):
                    value.zero_()


def _rescale(state: dict[str, Any], ratio: float) -> None:
    for name, value in state.items():
        power = _POWERS.get(name)
        if name == "momentum_buffer" and "square_avg" in state:
            continue  # RMSprop divides by the root of the square average before it adds up
        if power is not None and isinstance(value, Tensor):
            value.mul_(ratio**power)


def _restart_adagrad(optimizer: torch.optim.Adagrad, parameter: Tensor) -> None:
    """Adagrad makes its state when it is made itself, and cannot do without it."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    group = next(group for group in groups if any(one is parameter for one in group["params"]))
    state = optimizer.state[parameter]
    state["sum"].fill_(group["initial_accumulator_value"])
    state["step"].zero_()


def _zero(state: dict[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor):
            value.zero_()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            state[name] = type(value)(0)
