"""Physics-informed networks: Burgers' equation and Helmholtz', their residuals driven to zero on scattered points.

Raissi, Perdikaris & Karniadakis, J. Comput. Phys. 378 (2019). Training points are fixed, so training is deterministic.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from koopcast_server.demo.tasks.batches import drawn
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["BURGERS", "HELMHOLTZ", "FieldNetwork"]

_VISCOSITY: Final = 0.01 / math.pi
_BURGERS_POINTS: Final = 1024
_HELMHOLTZ_POINTS: Final = 512
_DENSER: Final = 4
"""So many times the training points are those that the target is taken on."""
_WAVES: Final = (1.0, 2.0)
"""Half waves of the solution per unit length, in x and in y."""
_WAVE_NUMBER: Final = 1.0


class FieldNetwork(nn.Module):
    """A scalar field of two coordinates: three tanh layers, with derivatives carried along forwards.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Linear(2, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.outer = nn.Linear(width, 1)

    def forward(self, points: Tensor) -> Tensor:
        """(n,): the field at `points`, (n, 2)."""
        for layer in (self.first, self.second, self.third):
            points = torch.tanh(layer(points))
        value: Tensor = self.outer(points).squeeze(-1)
        return value

    def jet(self, points: Tensor, curvature: tuple[float, float]) -> Tensor:
        """(4, n): the field, its two derivatives, and its second ones weighted with `curvature` and summed.

        One forward pass carries all four; reverse mode, nested twice, would be several times as slow.

        Args:
            points: (n, 2).
            curvature: of the two pure second derivatives: (0, 1) gives the second one, (1, 1) the Laplacian.
        """
        weights = torch.tensor(curvature)[:, None, None]
        slopes = self.first.weight.T[:, None, :].expand(2, len(points), -1)
        jet = _tanh_jet(self.first(points), slopes, None, weights)
        for layer in (self.second, self.third):
            jet = jet @ layer.weight.T
            jet = _tanh_jet(jet[0] + layer.bias, jet[1:3], jet[3], weights)
        outer: Tensor = (jet @ self.outer.weight.T).squeeze(-1)
        return torch.cat((outer[:1] + self.outer.bias, outer[1:]))


def _tanh_jet(value: Tensor, slopes: Tensor, curvature: Tensor | None, weights: Tensor) -> Tensor:
    """The same four of tanh(field), (4, n, width)."""
    output = torch.tanh(value)
    slope = 1.0 - output.square()
    bend = -2.0 * output * (weights * slopes.square()).sum(dim=0)
    curved = slope * (bend if curvature is None else bend + curvature)
    return torch.cat((output[None], slope * slopes, curved[None]))


def _scattered(points: int, low: tuple[float, float], high: tuple[float, float], seed: int) -> Tensor:
    """(points, 2), evenly spread: a scrambled Sobol sequence leaves no gaps for a network to hide a residual in."""
    sequence = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    unit = sequence.draw(points)
    return torch.tensor(low) + unit * (torch.tensor(high) - torch.tensor(low))


@cache
def _burgers_points(times_denser: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (t, x) in [0, 1] × [-1, 1]; what (u, u_t, u_x, u_xx) are without the network and with it.

    Start and edges are built in: u = −sin(πx) + t(1 − x²) N. The jet of u is then `offset` + `factors` · jet of N, of
    shapes (4, n) and (4, 4, n). Half of the points lie within |x| < 1/8, where the front becomes steep.
    """
    points = _scattered(times_denser * _BURGERS_POINTS, (0.0, -1.0), (1.0, 1.0), times_denser)
    points[:, 1] = points[:, 1] ** 3
    t, x = points.unbind(dim=1)
    wave = torch.sin(math.pi * x)
    zero, bump = torch.zeros_like(t), 1.0 - x.square()
    offset = torch.stack((-wave, zero, -math.pi * torch.cos(math.pi * x), math.pi**2 * wave))
    factors = (
        (t * bump, zero, zero, zero),
        (bump, t * bump, zero, zero),
        (-2.0 * t * x, zero, t * bump, zero),
        (-2.0 * t, zero, -4.0 * t * x, t * bump),
    )
    return points, offset, torch.stack([torch.stack(row) for row in factors])


def _burgers_loss(model: FieldNetwork, times_denser: int) -> Tensor:
    """Mean square of u_t + u u_x − (0.01/π) u_xx."""
    points, offset, factors = _burgers_points(times_denser)
    u, u_t, u_x, u_xx = offset + (factors * model.jet(points, (0.0, 1.0))).sum(dim=1)
    loss: Tensor = (u_t + u * u_x - _VISCOSITY * u_xx).square().mean()
    return loss


@cache
def _helmholtz_points(times_denser: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points in [-1, 1]²; what (N, N_x, N_y, ΔN) are multiplied with, (4, n), and the source, (n,).

    The solution is written u = (1 − x²)(1 − y²) N, which is zero at the edge. Then Δu + k²u − f, with the source f of
    the solution sin(aπx) sin(bπy), is linear in the network's jet. Both sides are divided by the source's root mean
    square, so that the loss is the residual's relative to it.
    """
    points = _scattered(times_denser * _HELMHOLTZ_POINTS, (-1.0, -1.0), (1.0, 1.0), 200 + times_denser)
    x, y = points.unbind(dim=1)
    a, b = _WAVES
    bump_x, bump_y = 1.0 - x.square(), 1.0 - y.square()
    squared = _WAVE_NUMBER**2
    factors = torch.stack(
        (
            squared * bump_x * bump_y - 2.0 * (bump_x + bump_y),
            -4.0 * x * bump_y,
            -4.0 * y * bump_x,
            bump_x * bump_y,
        )
    )
    solution = torch.sin(a * math.pi * x) * torch.sin(b * math.pi * y)
    source = (squared - math.pi**2 * (a**2 + b**2)) * solution
    scale = source.square().mean().sqrt()
    return points, factors / scale, source / scale


def _helmholtz_loss(model: FieldNetwork, times_denser: int) -> Tensor:
    points, factors, source = _helmholtz_points(times_denser)
    return ((factors * model.jet(points, (1.0, 1.0))).sum(dim=0) - source).square().mean()


def _burgers(seed: int) -> Problem:
    model = drawn(lambda: FieldNetwork(width=20), seed)

    def target_loss() -> float:
        with torch.no_grad():
            return float(_burgers_loss(model, _DENSER))

    return Problem(
        model,
        batch_loss=lambda _: _burgers_loss(model, 1),
        target_loss=target_loss,
        probe=lambda: _burgers_loss(model, 1),
    )


def _helmholtz(seed: int) -> Problem:
    model = drawn(lambda: FieldNetwork(width=24), seed)

    def target_loss() -> float:
        with torch.no_grad():
            return float(_helmholtz_loss(model, _DENSER))

    return Problem(
        model,
        batch_loss=lambda _: _helmholtz_loss(model, 1),
        target_loss=target_loss,
        probe=lambda: _helmholtz_loss(model, 1),
    )


BURGERS: Final = Task(
    name="pinn-burgers",
    title="physics-informed network for Burgers' equation, 2-20-20-20-1, 1,024 points",
    kind="deterministic",
    budget_steps=1000,
    target="residual loss",
    make=_burgers,
)
HELMHOLTZ: Final = Task(
    name="pinn-helmholtz",
    title="physics-informed network for Helmholtz' equation, 2-24-24-24-1, 512 points",
    kind="deterministic",
    budget_steps=1200,
    target="residual loss",
    make=_helmholtz,
)
