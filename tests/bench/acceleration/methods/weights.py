"""A network's tensors: copies of them, writing them back, moving them, and one vector of them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Tensors"]


class Tensors:
    """Some tensors of a network, written in place and outside autograd.

    Attributes:
        live: the tensors themselves.
    """

    def __init__(self, live: Sequence[Tensor]) -> None:
        """Work on these."""
        self.live = [tensor.detach() for tensor in live]  # the same memory

    @classmethod
    def trained(cls, model: nn.Module) -> Self:
        """Parameters that require gradients."""
        return cls([parameter for parameter in model.parameters() if parameter.requires_grad])

    @classmethod
    def averaged(cls, model: nn.Module) -> Self:
        """Those, and buffers of real numbers, such as BatchNorm's statistics."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        return cls([*cls.trained(model).live, *buffers])

    @classmethod
    def whole(cls, model: nn.Module) -> Self:
        """All parameters and all buffers."""
        return cls([*model.parameters(), *model.buffers()])

    def copies(self) -> list[Tensor]:
        """What they hold now."""
        return [tensor.clone() for tensor in self.live]

    def write(self, values: Sequence[Tensor]) -> None:
        """Set all of them."""
        for tensor, value in zip(self.live, values, strict=True):
            tensor.copy_(value)

    @contextmanager
    def swapped(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Inside they hold other values; after it what they held, bit for bit."""
        held = self.copies()
        self.write(values)
        try:
            yield
        finally:
            self.write(held)

    def flat(self) -> Tensor:
        """One vector (n) of all elements, a copy."""
        return torch.cat([tensor.reshape(-1) for tensor in self.live])

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """The parts of such a vector, in the tensors' shapes."""
        sizes = [tensor.numel() for tensor in self.live]
        return [
            piece.view_as(tensor) for piece, tensor in zip(torch.split(flat, sizes), self.live, strict=True)
        ]
