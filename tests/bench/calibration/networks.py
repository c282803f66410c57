"""The networks of the training runs, each with its data and its loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Classifier",
    "Oscillator",
    "Trained",
    "characters",
    "convolution",
    "digits",
    "oscillator",
    "regression",
]

_CONTEXT = 32
"""Characters that the transformer sees."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A network and what it learns.

    Attributes:
        module: whose parameters are trained.
        loss: of the samples with these numbers (n,), or of all of them: a scalar.
        samples: how many there are.
    """

    module: nn.Module
    loss: Callable[[Tensor | None], Tensor]
    samples: int


class Classifier(nn.Sequential):
    """Fully connected, tanh between the layers.

    Args:
        widths: input first.
    """

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers[:-1])


class Oscillator(nn.Module):
    """Time to (x, p) of ``H = p²/2 + x²/2 + x⁴/4``, 1-10-10-2, sine units (Mattheakis et al. 2020, arXiv 2001.11107)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 2)])

    def residual(self, time: Tensor) -> Tensor:
        """Mean square by which Hamilton's equations are missed at these times (n, 1).

        The solution is ``z(0) + (1 - e^-t) N(t)``; the derivative with time goes forward with the values.
        """
        value, slope = time, torch.ones_like(time)
        for number, layer in enumerate(self.layers):
            value, slope = layer(value), slope @ cast("Tensor", layer.weight).T
            if number < 2:
                value, slope = value.sin(), slope * value.cos()
        fade = torch.exp(-time)
        start = torch.tensor([1.3, 1.0])
        x, p = (start + (1 - fade) * value).unbind(-1)
        dx, dp = (fade * value + (1 - fade) * slope).unbind(-1)
        return ((dx - p).square() + (dp + x + x**3).square()).mean()


class _Characters(nn.Module):
    """The next character from those before it: one transformer block of width 32."""

    def __init__(self, alphabet: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, 32)
        self.position = nn.Parameter(0.02 * torch.randn(_CONTEXT, 32))
        self.block = nn.TransformerEncoderLayer(
            32, 2, dim_feedforward=64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.readout = nn.Linear(32, alphabet)
        self.mask: Tensor
        future = torch.full((_CONTEXT, _CONTEXT), -math.inf).triu(1)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        return cast("Tensor", self.readout(self.block(self.embedding(text) + self.position, self.mask)))


@cache
def _digit_images() -> tuple[Tensor, Tensor]:
    found = datasets.load_digits()
    return torch.tensor(found.data / 16.0, dtype=torch.float32), torch.tensor(found.target)


@cache
def _text() -> Tensor:
    """Descriptions of data sets, as the numbers of their characters."""
    sources = (datasets.load_digits, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes)
    text = "".join(str(source().DESCR) for source in sources)
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([numbers[character] for character in text])


def _supervised(
    module: nn.Module, inputs: Tensor, loss: Callable[[Tensor, Tensor], Tensor], wanted: Tensor
) -> Trained:
    def of(rows: Tensor | None) -> Tensor:
        if rows is None:
            return loss(module(inputs), wanted)
        return loss(module(inputs[rows]), wanted[rows])

    return Trained(module, of, len(inputs))


def digits(module: nn.Module) -> Trained:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, cross entropy."""
    images, labels = _digit_images()
    return _supervised(module, images, functional.cross_entropy, labels)


def convolution() -> Trained:
    """The digits, by two 3 x 3 convolutions of 8 channels."""
    module = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return digits(module)


def regression() -> Trained:
    """A smooth function of two variables at 256 points, by 2-32-32-1, mean square."""
    points = torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, y = points.unbind(-1)
    wanted = torch.sin(math.pi * x) * torch.cos(2 * y) + 0.5 * x * y
    return _supervised(Classifier(2, 32, 32, 1), points, functional.mse_loss, wanted[:, None])


def oscillator() -> Trained:
    """`Oscillator` at 200 times up to 4π, all of them in every step."""
    module = Oscillator()
    times = torch.linspace(0.0, 4 * math.pi, 200)[:, None]
    return Trained(module, lambda _rows: module.residual(times), 1)


def characters() -> Trained:
    """Next characters in a text of 11,600; a sample is a place in it."""
    text = _text()
    module = _Characters(int(text.max()) + 1)
    steps = torch.arange(_CONTEXT + 1)

    def loss(rows: Tensor | None) -> Tensor:
        places = torch.arange(0, len(text) - _CONTEXT - 1, _CONTEXT) if rows is None else rows
        samples = text[places[:, None] + steps]
        return functional.cross_entropy(module(samples[:, :-1]).flatten(0, 1), samples[:, 1:].flatten())

    return Trained(module, loss, len(text) - _CONTEXT - 1)
