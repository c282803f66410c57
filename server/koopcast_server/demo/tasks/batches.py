"""The order of minibatches, and networks drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Batches", "drawn", "multilayer_perceptron", "watched"]

Network = TypeVar("Network", bound=nn.Module)


class Batches:
    """Which samples each step sees: shuffled anew every epoch, without replacement; what is left over is dropped.

    Args:
        samples: of the training set.
        batch: samples a step.
        seed: of the order.
    """

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self._samples, self._batch, self._seed = samples, batch, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """int64 (batch,): the samples of this step; any step, in any order."""
        epoch, position = divmod(step, self._samples // self._batch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self._seed + epoch)
            self._order = torch.randperm(self._samples, generator=generator)
            self._epoch = epoch
        return self._order[position * self._batch : (position + 1) * self._batch]


def drawn(make: Callable[[], Network], seed: int) -> Network:
    """The network that `make` builds with this seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def multilayer_perceptron(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers of these widths, inputs and outputs included, with `activation` between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and no graph is kept; then its modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
