"""The classifier of the paper's second case: 784-20-20-20-10, minibatch Adadelta.

The paper names the widths, the data and the optimizer. Chosen here: tanh units, cross entropy, batches of 64 in a new
random order every epoch, PyTorch's defaults for Adadelta (learning rate 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paper.networks import Layout

__all__ = ["LAYOUT", "Training", "epoch_steps"]

LAYOUT: Final = Layout((784, 20, 20, 20, 10))
_BATCH: Final = 64


def epoch_steps(images: Tensor) -> int:
    """Optimizer steps in an epoch."""
    return math.ceil(len(images) / _BATCH)


@dataclass(slots=True)
class Training:
    """One network in training.

    Attributes:
        images: float32 (n, 784).
        labels: int64 (n,).
        seed: of the initial weights and of the order of the images.
    """

    images: Tensor
    labels: Tensor
    seed: int
    parameters: list[Tensor] = field(init=False)
    _optimizer: torch.optim.Optimizer = field(init=False)
    _order: torch.Generator = field(init=False)
    _batches: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Draw the initial weights."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.parameters = [parameter.requires_grad_() for parameter in LAYOUT.fresh_parameters()]
        self._optimizer = torch.optim.Adadelta(self.parameters)
        self._order = torch.Generator().manual_seed(self.seed)

    def step(self) -> None:
        """Take one step on the next batch."""
        if not self._batches:
            order = torch.randperm(len(self.images), generator=self._order)
            self._batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)][::-1]
        batch = self._batches.pop()
        self._optimizer.zero_grad()
        torch.autograd.backward(_loss(self.parameters, self.images[batch], self.labels[batch]))
        self._optimizer.step()

    def take(self, steps: int) -> None:
        """Take so many steps."""
        for _ in range(steps):
            self.step()

    def record(self, steps: int) -> NDArray[np.float32]:
        """Take steps; return the flat weights before the first and after each, (steps + 1, size)."""
        snapshots = np.empty((steps + 1, LAYOUT.size), dtype=np.float32)
        for index in range(steps + 1):
            if index:
                self.step()
            with torch.no_grad():
                snapshots[index] = torch.cat([parameter.flatten() for parameter in self.parameters]).numpy()
        return snapshots

    def loss_at(self, weights: NDArray[np.floating]) -> float:
        """Mean cross entropy over all images at flat weights (size), in float32; NaN where those overflow."""
        with torch.no_grad(), np.errstate(over="ignore"):
            flat = torch.as_tensor(np.asarray(weights, dtype=np.float32))
            return float(_loss(LAYOUT.split(flat), self.images, self.labels))


def _loss(parameters: list[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    hidden = images
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    for weight, bias in layers[:-1]:
        hidden = torch.nn.functional.linear(hidden, weight, bias).tanh()
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, *layers[-1]), labels)
