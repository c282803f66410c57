"""What displacements and the changes of the gradient along them tell of the loss's curvature. Vectors in, vectors out.

The inverse Hessian in limited memory: Nocedal, "Updating quasi-Newton matrices with limited storage" (1980), and Liu &
Nocedal, "On the limited memory BFGS method for large scale optimization" (1989), algorithm 2.1. The recursion runs on the
inner products of what is stored (Chen, Wang & Zhou, "Large-scale L-BFGS using MapReduce", 2014): two passes over the
pairs for each direction, instead of four small operations for each pair.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Secants"]

_LEAST_COSINE: Final = 1e-9
"""Pairs whose cosine is smaller show no positive curvature that rounding could not have made."""

_Matrix = NDArray[np.float64]


class Secants:
    """Pairs of a displacement and the change of the gradient along it, the newest ones, in a diagonal metric.

    The metric stands for the inverse Hessian where no pair tells, up to a factor, which the newest pair gives.
    """

    def __init__(self, pairs: int, metric: Tensor) -> None:
        """Keep at most so many pairs, two vectors each; `metric` is 1-d, positive, as long as they are."""
        self._metric = metric
        self._displacements = metric.new_zeros((pairs, metric.numel()))
        self._scaled_changes = metric.new_zeros((pairs, metric.numel()))
        # Rows and columns by place: displacements times changes, and changes times scaled changes.
        self._crossed: _Matrix = np.zeros((pairs, pairs))
        self._squared: _Matrix = np.zeros((pairs, pairs))
        self._order: list[int] = []

    def __len__(self) -> int:
        """Pairs held."""
        return len(self._order)

    def forget(self) -> None:
        """Hold no pair."""
        self._order.clear()

    def add(self, displacement: Tensor, change: Tensor) -> bool:
        """Learn a pair; False, and nothing is learnt, where the loss does not curve upwards along it.

        Args:
            displacement: 1-d.
            change: of the gradient, from where the displacement begins to where it ends.
        """
        product = float(torch.dot(displacement, change))
        scale = float(torch.linalg.vector_norm(displacement)) * float(torch.linalg.vector_norm(change))
        if not product > _LEAST_COSINE * scale:
            return False
        pairs = len(self._displacements)
        place = self._order.pop(0) if len(self._order) == pairs else len(self._order)
        self._order.append(place)
        self._displacements[place] = displacement
        torch.mul(change, self._metric, out=self._scaled_changes[place])
        self._crossed[:, place] = _products(self._displacements, change)
        self._crossed[place, :] = _products(self._scaled_changes, displacement / self._metric)
        self._crossed[place, place] = product
        squared = _products(self._scaled_changes, change)
        self._squared[:, place] = squared
        self._squared[place, :] = squared
        return True

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient, 1-d."""
        found = gradient * self._metric
        if not self._order:
            return found.neg_()
        along = _products(self._displacements, gradient)
        across = _products(self._scaled_changes, gradient)
        factor, of_changes, of_displacements = self._recursion(along, across)
        found.mul_(-factor)
        found.addmv_(self._scaled_changes.T, torch.from_numpy(of_changes).to(found), alpha=factor)
        return found.addmv_(self._displacements.T, torch.from_numpy(of_displacements).to(found), alpha=-1.0)

    def _recursion(self, along: _Matrix, across: _Matrix) -> tuple[float, _Matrix, _Matrix]:
        """The two loops on inner products: the newest pair's factor, and the shares of changes and displacements."""
        order = self._order
        places = np.ix_(order, order)  # from the oldest to the newest
        squared = self._squared[places]
        # The loop from the newest pair to the oldest is back-substitution, the one after it forward substitution.
        later = torch.from_numpy(
            self._crossed[places]
        )  # of which only what lies above its diagonal is looked at
        factor = float(self._crossed[order[-1], order[-1]] / squared[-1, -1])
        taken = _solved(later, along[order], upper=True)
        remaining = factor * (across[order] - squared @ taken)
        added = _solved(later.T, later.diagonal().numpy() * taken - remaining, upper=False)
        of_changes, of_displacements = np.zeros(len(along)), np.zeros(len(along))
        of_changes[order], of_displacements[order] = taken, added
        return factor, of_changes, of_displacements


def _solved(triangle: Tensor, values: _Matrix, *, upper: bool) -> _Matrix:
    column = torch.from_numpy(values).unsqueeze(1)
    found: _Matrix = torch.linalg.solve_triangular(triangle, column, upper=upper).squeeze(1).numpy()
    return found


def _products(rows: Tensor, vector: Tensor) -> _Matrix:
    return torch.mv(rows, vector).double().cpu().numpy()
