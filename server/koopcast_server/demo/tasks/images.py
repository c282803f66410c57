"""Fashion-MNIST in minibatches: an MLP, a small convolutional network with BatchNorm, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

import koopcast
from koopcast_server.demo.tasks.batches import Batches, drawn, multilayer_perceptron, watched
from koopcast_server.demo.tasks.data import load_fashion
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["CNN", "FINE_TUNING", "MLP"]

_TRAINING: Final = 30_000
_VALIDATION: Final = 2000
_BATCH: Final = 64
_PROBE_BATCHES: Final = 4
_ADAPTING_BATCHES: Final = 4

_CLASSES: Final = 5
"""The net is pretrained on so many, and fine-tuned on as many others."""
_BODY: Final = (784, 128, 64)
_PRETRAINING_STEPS: Final = 1000
_PRETRAINING_RATE: Final = 1e-3
_TUNING_IMAGES: Final = 10_000

Images = tuple[Tensor, Tensor]
"""Pixels, float32 (n, …), and labels, int64 (n,)."""


@cache
def _fashion() -> tuple[Images, Images]:
    """Training and validation images, 784 pixels each, standardised."""
    pixels, labels = load_fashion()
    pixels, labels = pixels[: _TRAINING + _VALIDATION], labels[: _TRAINING + _VALIDATION]
    pixels = (pixels - pixels.mean()) / pixels.std()
    return (pixels[:_TRAINING], labels[:_TRAINING]), (pixels[_TRAINING:], labels[_TRAINING:])


@cache
def _fashion_half(first_label: int) -> tuple[Images, Images]:
    """Training and validation images of five classes, their labels counted from 0."""
    halves = []
    for pixels, labels in _fashion():
        chosen = (labels >= first_label) & (labels < first_label + _CLASSES)
        halves.append((pixels[chosen][:_TUNING_IMAGES], labels[chosen][:_TUNING_IMAGES] - first_label))
    return halves[0], halves[1]


def _classification(model: nn.Module, training: Images, validation: Images, seed: int) -> Problem:
    """Cross entropy; the last images of the training set are the probe's."""
    images, labels = training
    batches = Batches(len(images), _BATCH, seed)
    probe_images, probe_labels = images[-_PROBE_BATCHES * _BATCH :], labels[-_PROBE_BATCHES * _BATCH :]

    def batch_loss(step: int) -> Tensor:
        chosen = batches.indices(step)
        return nn.functional.cross_entropy(model(images[chosen]), labels[chosen])

    def probe() -> Tensor:
        with _untracked(model):
            return nn.functional.cross_entropy(model(probe_images), probe_labels)

    def target_loss() -> float:
        with watched(model):
            return float(nn.functional.cross_entropy(model(validation[0]), validation[1]))

    return Problem(model, batch_loss, target_loss, probe, probe_cost_steps=_PROBE_BATCHES)


@contextmanager
def _untracked(model: nn.Module) -> Iterator[None]:
    """As in training, so with the batch's own statistics; BatchNorm's running ones are no matter of a probe.

    They are left out rather than put back: writing to them would make what autograd saved of them worthless.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


def _mlp(seed: int) -> Problem:
    training, validation = _fashion()
    model = drawn(lambda: multilayer_perceptron((784, 64, 64, 10), nn.ReLU), seed)
    return _classification(model, training, validation, seed)


def _convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _cnn(seed: int) -> Problem:
    training, validation = _fashion()
    problem = _classification(drawn(_convolutional, seed), training, validation, seed)
    shown = training[0][: _ADAPTING_BATCHES * _BATCH]
    problem.adapt = koopcast.update_bn(list(shown.view(_ADAPTING_BATCHES, _BATCH, -1)))
    problem.adapt_cost_steps = _ADAPTING_BATCHES
    return problem


@cache
def _pretrained_body() -> dict[str, Tensor]:
    """Weights of the layers below the head, after training on the first five classes; always the same."""
    training, validation = _fashion_half(0)
    model = _with_head()
    problem = _classification(model, training, validation, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=_PRETRAINING_RATE)
    for step in range(_PRETRAINING_STEPS):
        optimizer.zero_grad()
        problem.batch_loss(step).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    head = f"{len(model) - 1}."
    return {name: value for name, value in model.state_dict().items() if not name.startswith(head)}


def _with_head() -> nn.Sequential:
    return multilayer_perceptron((*_BODY, _CLASSES), nn.ReLU)


def _fine_tuning(seed: int) -> Problem:
    training, validation = _fashion_half(_CLASSES)
    model = drawn(_with_head, seed)
    model.load_state_dict(_pretrained_body(), strict=False)
    return _classification(model, training, validation, seed)


def _task(name: str, title: str, budget_steps: int, make: Callable[[int], Problem]) -> Task:
    return Task(name, title, "stochastic", budget_steps, "validation loss", make)


MLP: Final = _task("fashion-mlp", "Fashion-MNIST, MLP 784-64-64-10, batches of 64", 2000, _mlp)
CNN: Final = _task(
    "fashion-cnn", "Fashion-MNIST, three convolutions with BatchNorm, batches of 64", 800, _cnn
)
FINE_TUNING: Final = _task(
    "fine-tuning",
    "Fashion-MNIST, MLP pretrained on five classes, tuned on the five others, batches of 64",
    1000,
    _fine_tuning,
)
