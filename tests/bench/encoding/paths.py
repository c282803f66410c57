"""Weights of real training runs, snapshot by snapshot: what is pushed, and the truth that predictions miss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.networks import Classifier, Trained
from calibration.tasks import TASKS, Task
from koopcast_server.demo.data import load_digits

__all__ = ["PATHS", "STRIDE", "Path", "Recipe", "some_digits"]

STRIDE = 10
"""Steps between snapshots."""
SNAPSHOTS = 140
"""Of a run: windows end at the 16th to the 76th, and are predicted up to 64 strides ahead."""


def some_digits() -> tuple[Tensor, Tensor]:
    """Every fifth of the demo's MNIST digits, which are sorted by class: images (1000, 784) and labels (1000,)."""
    images, labels = load_digits()
    return images[::5].contiguous(), labels[::5].contiguous()


def _mnist() -> Trained:
    images, labels = some_digits()
    module = Classifier(784, 20, 20, 20, 10)

    def loss(rows: Tensor | None) -> Tensor:
        some, wanted = (images, labels) if rows is None else (images[rows], labels[rows])
        return torch.nn.functional.cross_entropy(module(some), wanted)

    return Trained(module, loss, len(images))


@dataclass(frozen=True, slots=True)
class Path:
    """A run's snapshots.

    Attributes:
        shapes: of the tensors, by name, in order.
        snapshots: (K, n) float32, all tensors flat.
    """

    shapes: dict[str, tuple[int, ...]]
    snapshots: NDArray[np.float32]

    def tensors(self, number: int) -> dict[str, NDArray[np.float32]]:
        """One snapshot by name."""
        parts: dict[str, NDArray[np.float32]] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            parts[name] = self.snapshots[number, start:stop].reshape(shape)
            start = stop
        return parts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a path comes about.

    Attributes:
        task: network, data and optimizer.
        averaged: snapshots are the means of the last `STRIDE` steps.
    """

    task: Task
    averaged: bool = False

    def path(self, seed: int) -> Path:
        """Train."""
        run = self.task.start(seed)
        parameters = [parameter.detach() for parameter in run.parameters.values()]
        found = np.empty((SNAPSHOTS, sum(parameter.numel() for parameter in parameters)), np.float32)
        for number in range(SNAPSHOTS):
            total = torch.zeros(found.shape[1], dtype=torch.float64)
            for _ in range(STRIDE):
                run.step()
                if self.averaged:
                    total += torch.cat([parameter.reshape(-1) for parameter in parameters])
            flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
            found[number] = (total / STRIDE if self.averaged else flat).numpy()
        shapes = {name: tuple(parameter.shape) for name, parameter in run.parameters.items()}
        return Path(shapes, found)


_momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
_adam = partial(torch.optim.Adam, lr=1e-3)

PATHS: dict[str, Recipe] = {
    "digits, momentum": Recipe(TASKS["digits, momentum"]),
    "digits, Adam": Recipe(TASKS["digits, Adam"]),
    "MNIST, momentum": Recipe(Task(_mnist, _momentum)),
    "MNIST, Adam": Recipe(Task(_mnist, _adam)),
    "MNIST, momentum, batch 64, averaged": Recipe(Task(_mnist, _momentum, batch=64), averaged=True),
    "MNIST, Adam, batch 64, averaged": Recipe(Task(_mnist, _adam, batch=64), averaged=True),
    "MNIST, Adam, batch 64": Recipe(Task(_mnist, _adam, batch=64)),
}
"""By the name in tables."""
