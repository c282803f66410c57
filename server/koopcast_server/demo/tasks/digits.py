"""Handwritten digits, the whole training set each step."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from koopcast_server.demo.data import load_digits
from koopcast_server.demo.tasks.batches import drawn, multilayer_perceptron, watched
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["MNIST_FULL"]

_WIDTHS: Final = (196, 24, 10)
_TRAINING: Final = 4000
_PENALTY: Final = 3e-4
"""Factor of the squared weights in the training loss, without which 4,000 digits are soon learnt by heart."""


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """5,000 digits in one fixed order: float32 (n, 196), 14 × 14 pixels by averaging, and int64 (n,)."""
    images, labels = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pooled = nn.functional.avg_pool2d(images.view(-1, 1, 28, 28), 2).flatten(start_dim=1)
    return pooled[order], labels[order]


def _make(seed: int) -> Problem:
    images, labels = _digits()
    training_images, training_labels = images[:_TRAINING], labels[:_TRAINING]
    validation_images, validation_labels = images[_TRAINING:], labels[_TRAINING:]
    model = drawn(lambda: multilayer_perceptron(_WIDTHS, nn.Tanh), seed)

    def training_loss() -> Tensor:
        squared = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        return nn.functional.cross_entropy(model(training_images), training_labels) + _PENALTY * squared

    def target_loss() -> float:
        with watched(model):
            return float(nn.functional.cross_entropy(model(validation_images), validation_labels))

    return Problem(model, batch_loss=lambda _: training_loss(), target_loss=target_loss, probe=training_loss)


MNIST_FULL: Final = Task(
    name="mnist-full",
    title="MNIST digits of 14 × 14 pixels, MLP 196-24-10, full batch of 4,000",
    kind="deterministic",
    budget_steps=600,
    target="validation loss",
    make=_make,
)
