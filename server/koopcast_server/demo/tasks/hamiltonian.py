"""Hamiltonian networks: a scalar H(q, p) whose derivatives are fitted to a vector field.

Greydanus, Dzamba & Yosinski, "Hamiltonian neural networks", NeurIPS 2019 (arXiv 1906.01563). The fields are those of
the nonlinear oscillator that Dogra & Redman train on, and of Hénon & Heiles' star in a galaxy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from koopcast_server.demo.tasks.batches import drawn
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["HENON_HEILES", "OSCILLATOR", "HamiltonianNetwork"]

_ESCAPE_ENERGY: Final = 1.0 / 6.0
"""Stars of Hénon and Heiles with less than that stay bound."""
_VALIDATION_POINTS: Final = 2048


class HamiltonianNetwork(nn.Module):
    """H(q, p) with two hidden layers of tanh units, known by its vector field only.

    The output has no bias: no derivative sees it.

    Args:
        degrees: of freedom; the inputs are as many positions and then as many momenta.
        width: of both hidden layers.
    """

    def __init__(self, degrees: int, width: int) -> None:
        super().__init__()
        self.degrees = degrees
        self.first = nn.Linear(2 * degrees, width)
        self.second = nn.Linear(width, width)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(n, 2·degrees): (dq/dt, dp/dt) = (∂H/∂p, −∂H/∂q) at these states, of the same shape.

        The derivative is written out, so that only one pass of autograd, for the weights, is needed.
        """
        first = torch.tanh(self.first(states))
        second = torch.tanh(self.second(first))
        of_second = (1.0 - second.square()) * self.energy.weight
        of_first = (1.0 - first.square()) * (of_second @ self.second.weight)
        gradient = of_first @ self.first.weight
        return torch.cat((gradient[:, self.degrees :], -gradient[:, : self.degrees]), dim=1)


@cache
def _oscillator(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """States in [-2, 2]² and their rates, for H = p²/2 + q²/2 + q⁴/4."""
    states = 4.0 * torch.rand((points, 2), generator=torch.Generator().manual_seed(seed)) - 2.0
    position, momentum = states.unbind(dim=1)
    return states, torch.stack((momentum, -position - position**3), dim=1)


@cache
def _henon_heiles(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bound states and their rates, for H = (p² + x² + y²)/2 + x²y − y³/3."""
    candidates = 2.0 * torch.rand((50 * points, 4), generator=torch.Generator().manual_seed(seed)) - 1.0
    x, y, px, py = candidates.unbind(dim=1)
    energies = 0.5 * candidates.square().sum(dim=1) + x.square() * y - y**3 / 3.0
    rates = torch.stack((px, py, -x - 2.0 * x * y, -y - x.square() + y.square()), dim=1)
    bound = (energies < _ESCAPE_ENERGY).nonzero().squeeze(-1)[:points]
    return candidates[bound], rates[bound]


def _make(
    field: Callable[[int, int], tuple[Tensor, Tensor]], degrees: int, width: int, points: int
) -> Callable[[int], Problem]:
    def make(seed: int) -> Problem:
        training, validation = field(points, 0), field(_VALIDATION_POINTS, 1)
        model = drawn(lambda: HamiltonianNetwork(degrees, width), seed)

        def training_loss() -> Tensor:
            return nn.functional.mse_loss(model(training[0]), training[1])

        def target_loss() -> float:
            with torch.no_grad():
                return float(nn.functional.mse_loss(model(validation[0]), validation[1]))

        return Problem(
            model, batch_loss=lambda _: training_loss(), target_loss=target_loss, probe=training_loss
        )

    return make


OSCILLATOR: Final = Task(
    name="hamiltonian-oscillator",
    title="Hamiltonian network of a nonlinear oscillator, 2-32-32-1, full batch of 512",
    kind="deterministic",
    budget_steps=2000,
    target="validation loss",
    make=_make(_oscillator, degrees=1, width=32, points=512),
)
HENON_HEILES: Final = Task(
    name="henon-heiles",
    title="Hamiltonian network of Hénon and Heiles' star, 4-64-64-1, full batch of 1,024",
    kind="deterministic",
    budget_steps=1200,
    target="validation loss",
    make=_make(_henon_heiles, degrees=2, width=64, points=1024),
)
