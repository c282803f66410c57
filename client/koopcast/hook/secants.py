"""What displacements and the changes of the gradient along them tell of the loss's curvature. Vectors in, vectors out.

The inverse Hessian in limited memory: Nocedal, "Updating quasi-Newton matrices with limited storage" (1980), and Liu &
Nocedal, "On the limited memory BFGS method for large scale optimization" (1989), algorithm 2.1.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import torch
from torch import Tensor

__all__ = ["Secants"]

_LEAST_COSINE: Final = 1e-9
"""Pairs whose cosine is smaller show no positive curvature that rounding could not have made."""


class Secants:
    """Pairs of a displacement and the change of the gradient along it, the newest ones."""

    def __init__(self, pairs: int) -> None:
        """Keep at most so many pairs: two vectors each."""
        self._pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=pairs)

    def __len__(self) -> int:
        """Pairs held."""
        return len(self._pairs)

    def forget(self) -> None:
        """Hold no pair."""
        self._pairs.clear()

    def add(self, displacement: Tensor, change: Tensor) -> bool:
        """Learn a pair; False, and nothing is learnt, where the loss does not curve upwards along it.

        Args:
            displacement: 1-d; kept, not copied.
            change: of the gradient, from where the displacement begins to where it ends; kept, not copied.
        """
        product = float(torch.dot(displacement, change))
        scale = float(torch.linalg.vector_norm(displacement)) * float(torch.linalg.vector_norm(change))
        if not product > _LEAST_COSINE * scale:
            return False
        self._pairs.append((displacement, change, 1.0 / product))
        return True

    def direction(self, gradient: Tensor, metric: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient.

        Args:
            gradient: 1-d.
            metric: diagonal of what the inverse Hessian is taken for where no pair tells, up to a factor: the newest
                pair gives that.
        """
        found = gradient.clone()
        shares: list[float] = []
        for displacement, change, inverse in reversed(self._pairs):
            share = inverse * float(torch.dot(displacement, found))
            shares.append(share)
            found.add_(change, alpha=-share)
        found.mul_(metric)
        if self._pairs:
            _, change, inverse = self._pairs[-1]
            found.mul_(1.0 / (inverse * float(torch.dot(change, metric * change))))
        for (displacement, change, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            found.add_(displacement, alpha=share - inverse * float(torch.dot(change, found)))
        return found.neg_()
