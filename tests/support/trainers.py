"""Small training runs and hand-made predictions for tests of the hook."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import koopcast
from koopcast.prediction import Block, Prediction, Summary


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Tiny networks on one thread: more of them only wait for each other. For a conftest to import."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class NoisyNet(nn.Module):
    """A network with all that a probe can disturb: dropout, BatchNorm, a tied and a frozen parameter, a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 16)
        self.tied = self.second
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(16, 1)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(self.norm(self.first(inputs)))
        hidden = self.dropout(torch.tanh(self.tied(hidden)))
        output: Tensor = self.last(hidden) * self.scale
        return output


def data(count: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs and targets, the same every time, without touching the global generators."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.rand(count, 8, generator=generator) * 2 - 1
    return inputs, torch.sin(inputs.sum(1, keepdim=True))


def smooth_net(seed: int = 0) -> nn.Sequential:
    """A net that trains deterministically along a predictable path."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loss_of(model: nn.Module) -> Tensor:
    """Mean squared error on all data, in the model's present mode."""
    inputs, targets = data()
    return nn.functional.mse_loss(model(inputs), targets)


def seed_all(seed: int = 0) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the state that a probe must not change
    torch.manual_seed(seed)


def random_numbers() -> tuple[float, float, float]:
    """The next number of each global generator: equal only if their states were."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    count: int,
    loss: Callable[[nn.Module], Tensor] = loss_of,
) -> Iterator[int]:
    """Train; yields after every step, counted from 1."""
    for step in range(1, count + 1):
        optimizer.zero_grad()
        torch.autograd.backward(loss(model))
        optimizer.step()
        yield step


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Train for `count` steps."""
    for _ in steps(model, optimizer, count):
        pass


def bits(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, bytes]:
    """Every bit of a model's state and, if given, of its optimizer's."""
    tensors: dict[str, Tensor] = dict(model.state_dict())
    if optimizer is not None:
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"{index}.{key}": value for key, value in entry.items() if isinstance(value, Tensor)}
    return {name: tensor.detach().cpu().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def prediction(
    displacement: Mapping[str, Any] | None = None,
    *,
    steps: float = 10.0,
    operator_index: int = 0,
    moved: bool = True,
    blocks: tuple[Block, ...] | None = None,
    segment: int = 1,
    base_step: int = 100,
    from_step: int = 100,
) -> Prediction:
    """A prediction made by hand."""
    told = (block(),) if blocks is None else blocks
    moves = dict(displacement or {})
    return Prediction(
        id=f"{operator_index}/{steps}",
        base_step=base_step,
        from_step=from_step,
        steps=steps,
        segment=segment,
        moved=moved,
        operator_index=operator_index,
        blocks=told,
        summary=_summary(told, steps),
        _displacement=lambda: moves,
        _base=dict,
    )


def _summary(blocks: tuple[Block, ...], steps: float) -> Summary:
    """What a service says of these blocks together."""
    moved = [one for one in blocks if one.moved]
    trusted = [
        one
        for one in moved
        if not one.extrapolated
        and steps <= one.backtest_steps
        and one.backtest_error < 1.0
        and one.backtest_error < one.backtest_error_linear
    ]
    errors = [one.backtest_error for one in moved]
    return Summary(
        blocks=len(blocks),
        moved=len(moved),
        untrusted=len(moved) - len(trusted),
        spectral_radius=max((one.spectral_radius for one in blocks), default=0.0),
        backtest_error=max(errors, default=math.nan),
        backtest_error_linear=max((one.backtest_error_linear for one in moved), default=math.nan),
        predicted_error=max(errors, default=math.nan),
    )


def block(
    error: float = 0.1,
    linear: float = 0.5,
    backtest_steps: int = 30,
    *,
    moved: bool = True,
    extrapolated: bool = False,
) -> Block:
    """A block's report made by hand."""
    return Block("network", 10, 3, 0.9, 0.01, error, linear, backtest_steps, moved, extrapolated, (1.0 + 0j,))


def displacement_of(model: nn.Module, size: float = 0.01) -> dict[str, np.ndarray[Any, Any]]:
    """A displacement for every trainable parameter, with values that no two weights share."""
    return {
        name: (size * np.arange(1, math.prod(parameter.shape) + 1, dtype=np.float32)).reshape(
            tuple(parameter.shape)
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def weights(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class LinearTraining:
    """Weights that approach a goal at a rate of their own, whatever the gradient: an exactly predictable trainer."""

    def __init__(self, rate: float = 0.98) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(30, 20).double()
        self.goal = weights(self.model) + torch.randn(620, dtype=torch.float64)
        self.rate = rate
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0 - rate)

    def distance(self) -> Tensor:
        """The loss: half the squared distance from the goal."""
        return 0.5 * (self._flat() - self.goal).square().sum()

    def train(self, count: int) -> Iterator[int]:
        """Train; yields after every step, counted from 1."""
        yield from steps(self.model, self.optimizer, count, lambda _: self.distance())

    def _flat(self) -> Tensor:
        return torch.cat([parameter.flatten() for parameter in self.model.parameters()])


def settled(ahead: koopcast.Ahead, snapshots: int) -> koopcast.hook.Stats:
    """The counts, once the background thread has pushed so many snapshots."""
    deadline = time.monotonic() + 10
    while ahead.stats().snapshots_pushed < snapshots and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # an outcome may be on its way
    return ahead.stats()
