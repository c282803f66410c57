"""The Hamiltonian network of the paper's first case: 1-10-10-2 with sine units, solving a nonlinear oscillator.

The network (Mattheakis et al., "Hamiltonian neural networks for solving equations of motion", arXiv 2001.11107) maps
a time t to N(t) = (N₁, N₂), and z(t) = z₀ + (1 - exp(-t)) N(t) is its solution (x, p) of Hamilton's equations for
H = p²/2 + x²/2 + x⁴/4, x₀ = 1.3, p₀ = 1. The loss is the mean square of the residuals at 200 times that are fixed and
evenly spaced in [0, 4π]; so training is deterministic. Many networks are trained as one, stacked along a leading
dimension: nothing couples them, and their optimizers work element by element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paper.networks import Layout

__all__ = [
    "LAYOUT",
    "OPTIMIZERS",
    "initial_parameters",
    "losses",
    "losses_at",
    "train_steps",
]

LAYOUT: Final = Layout((1, 10, 10, 2))
OPTIMIZERS: Final = ("adadelta", "adam", "adagrad")

_POINTS: Final = 200
_DURATION: Final = 4.0 * math.pi
_START: Final = (1.3, 1.0)
"""Position and momentum at t = 0."""


def initial_parameters(seeds: range) -> list[Tensor]:
    """Draw the networks of these seeds as `torch.nn.Linear` does.

    Returns:
        float32 tensors in the layout's order, weights (seeds, out, in) and biases (seeds, out); all of them leaves.
    """
    stacks = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            stacks.append(LAYOUT.fresh_parameters())
    stacked = [torch.stack(parts) for parts in zip(*stacks, strict=True)]
    return [parameter.requires_grad_() for parameter in stacked]


def losses(parameters: list[Tensor]) -> Tensor:
    """Mean squared residual of Hamilton's equations, one number a network.

    Args:
        parameters: as `initial_parameters` makes them, of any floating dtype.

    Returns:
        (networks), to be differentiated.
    """
    weight_1, bias_1, weight_2, bias_2, weight_3, bias_3 = parameters
    times = torch.linspace(0.0, _DURATION, _POINTS, dtype=weight_1.dtype)
    # Every layer carries its values and their time derivatives, side by side along the last axis: forward mode
    # costs one product a layer, where differentiating the network's output would run it backward twice.
    before_1 = weight_1 * times + bias_1.unsqueeze(-1)
    layer_1 = torch.cat((before_1.sin(), before_1.cos() * weight_1), dim=-1)
    before_2, slope_2 = torch.bmm(weight_2, layer_1).chunk(2, dim=-1)
    before_2 = before_2 + bias_2.unsqueeze(-1)
    layer_2 = torch.cat((before_2.sin(), before_2.cos() * slope_2), dim=-1)
    value, slope = torch.bmm(weight_3, layer_2).chunk(2, dim=-1)
    value = value + bias_3.unsqueeze(-1)
    decay = torch.exp(-times)
    rise = 1.0 - decay
    start = torch.tensor(_START, dtype=times.dtype).unsqueeze(-1)
    position, momentum = (start + rise * value).unbind(1)
    velocity, force = (decay * value + rise * slope).unbind(1)
    return ((velocity - momentum) ** 2 + (force + position + position**3) ** 2).mean(dim=-1)


def losses_at(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """`losses` in float64 at flat weights (networks, 152)."""
    with torch.no_grad():
        values = losses(LAYOUT.split(torch.as_tensor(np.asarray(weights, dtype=np.float64))))
    return np.asarray(values.numpy(), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the networks are trained.

    Attributes:
        name: one of `OPTIMIZERS`.
        learning_rate: None for PyTorch's own default, 1.0, 0.001 and 0.01.
    """

    name: str
    learning_rate: float | None = None

    @property
    def label(self) -> str:
        """Name and, where it is not the default, learning rate."""
        return self.name if self.learning_rate is None else f"{self.name}-{self.learning_rate:g}"

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer, all else as PyTorch has it.

        Raises:
            ValueError: for another name.
        """
        named: dict[str, type[torch.optim.Optimizer]] = {
            "adadelta": torch.optim.Adadelta,
            "adam": torch.optim.Adam,
            "adagrad": torch.optim.Adagrad,
        }
        if self.name not in named:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.name!r}")
        settings: dict[str, Any] = {} if self.learning_rate is None else {"lr": self.learning_rate}
        return named[self.name](parameters, **settings)


def train_steps(parameters: list[Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take full-batch steps. The summed loss has for every network the gradient that it would have alone."""
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(losses(parameters).sum())
        optimizer.step()
