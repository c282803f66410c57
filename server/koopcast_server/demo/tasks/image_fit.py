"""A photograph as a function of the pixel's place: a network on random Fourier features of the coordinates.

Tancik et al., "Fourier features let networks learn high frequency functions in low dimensional domains", NeurIPS 2020
(arXiv 2006.10739).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from koopcast_server.demo.tasks.batches import drawn, multilayer_perceptron
from koopcast_server.demo.tasks.data import load_photograph
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["IMAGE_FIT"]

_SIDE: Final = 64
"""Pixels of the photograph's side, of which it has two alike."""
_FEATURES: Final = 64
"""Sines and cosines together."""
_BANDWIDTH: Final = 4.0
"""Standard deviation of the features' frequencies, in waves across the picture's half side."""
_WIDTHS: Final = (_FEATURES, 32, 32, 1)


@cache
def _picture() -> tuple[Tensor, Tensor]:
    """Features of all pixels, (4096, 64), and their brightnesses, (4096,), of mean 0 and variance 1."""
    pixels = load_photograph(_SIDE).flatten()
    axis = torch.linspace(-1.0, 1.0, _SIDE)
    places = torch.cartesian_prod(axis, axis)
    generator = torch.Generator().manual_seed(0)
    phases = math.pi * _BANDWIDTH * places @ torch.randn((2, _FEATURES // 2), generator=generator)
    return torch.cat((phases.sin(), phases.cos()), dim=1), (pixels - pixels.mean()) / pixels.std()


def _make(seed: int) -> Problem:
    features, pixels = _picture()
    model = drawn(lambda: multilayer_perceptron(_WIDTHS, nn.ReLU), seed)

    def loss() -> Tensor:
        return nn.functional.mse_loss(model(features).squeeze(-1), pixels)

    def target_loss() -> float:
        with torch.no_grad():
            return float(loss())

    return Problem(model, batch_loss=lambda _: loss(), target_loss=target_loss, probe=loss)


IMAGE_FIT: Final = Task(
    name="image-fit",
    title="photograph of 64 × 64 pixels by its coordinates, MLP 64-32-32-1 on Fourier features",
    kind="deterministic",
    budget_steps=1500,
    target="loss over all pixels",
    make=_make,
)
