"""How a fully connected network's parameters lie in one flat vector."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A fully connected network of these widths, input first.

    Its flat vector holds, layer by layer, the weight [out, in] row by row and the bias [out].
    """

    widths: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the vector's order: "1.weight", "1.bias", "2.weight" …"""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (inputs, outputs) in enumerate(itertools.pairwise(self.widths), start=1):
            shapes[f"{number}.weight"] = (outputs, inputs)
            shapes[f"{number}.bias"] = (outputs,)
        return shapes

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(self.widths))

    def fresh_parameters(self) -> list[Tensor]:
        """Draw float32 parameters as `torch.nn.Linear` does, from torch's random state as it stands."""
        layers = [torch.nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(self.widths)]
        return [parameter.detach() for layer in layers for parameter in (layer.weight, layer.bias)]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of flat weights (…, size) as parameters (…, *shape)."""
        parts, start = [], 0
        for shape in self.shapes.values():
            elements = math.prod(shape)
            parts.append(flat[..., start : start + elements].reshape(*flat.shape[:-1], *shape))
            start += elements
        return parts
