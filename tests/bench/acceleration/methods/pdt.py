"""Predictive Differential Training: DMD on five snapshots, five ahead, for the weights that pass a mask."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import torch
from torch import Tensor

from acceleration.methods.masks import masked
from acceleration.methods.running import Beside, Start
from acceleration.methods.trying import Tester
from acceleration.methods.weights import Tensors

__all__ = ["ahead_of_last", "pdt"]

_SNAPSHOTS: Final = 5
_HORIZON: Final = 5
_EPOCHS: Final = 50


def ahead_of_last(snapshots: Tensor, strides: int) -> Tensor:
    """Displacement (n) from the last of (snapshots, n), by DMD of the weights themselves, in float64.

    ``Ã = Uᵀ Y V Σ⁻¹`` in the POD basis U of all but the last snapshot, its rank by Gavish & Donoho's hard threshold (at
    least 1), eigenvalues as they come: ``U (Ã^k - 1) Uᵀ w``. Of (λ^k - 1) on eigenvectors, this is the same without them.
    """
    states = snapshots.double().T
    basis, singular, right = torch.linalg.svd(states[:, :-1], full_matrices=False)
    shape = min(states.shape[0], len(snapshots) - 1) / max(states.shape[0], len(snapshots) - 1)
    factor = 0.56 * shape**3 - 0.95 * shape**2 + 1.82 * shape + 1.43
    threshold = factor * float(torch.quantile(singular, 0.5))
    rank = max(1, int((singular > threshold).sum()))
    basis, singular, right = basis[:, :rank], singular[:rank], right[:rank]
    operator = basis.T @ states[:, 1:] @ right.T / singular
    coordinates = basis.T @ states[:, -1]
    moved = torch.linalg.matrix_power(operator, strides) @ coordinates - coordinates
    displacement: Tensor = basis @ moved
    return displacement.to(snapshots.dtype)


class _Differential(Beside):
    def __init__(self, start: Start) -> None:
        self._weights = Tensors.trained(start.problem.model)
        self._tester = Tester(start)
        self._epoch_steps = max(1, start.budget_steps // _EPOCHS)
        self._history: deque[Tensor] = deque(maxlen=_SNAPSHOTS)
        self._steps = 0
        self._jumps: list[list[float]] = []
        self._kept: list[float] = []

    def after_step(self) -> float:
        self._steps += 1
        if self._steps % self._epoch_steps:
            return 0.0
        spent = self._tester.counted
        if len(self._history) == _SNAPSHOTS:
            self._jump(self._weights.flat())
        self._history.append(self._weights.flat())
        return self._tester.counted - spent

    def facts(self) -> dict[str, Any]:
        kept = sum(self._kept) / len(self._kept) if self._kept else 0.0
        return {
            "jumps": self._jumps,
            "kept_share": round(kept, 4),
            "on_jump_evaluations": self._tester.adaptations,
        }

    def _jump(self, now: Tensor) -> None:
        """Weights that pass the mask go where DMD says from the last snapshot; the others are where training left them."""
        last = self._history[-1]
        predicted = ahead_of_last(torch.stack(list(self._history)), _HORIZON)
        displacement = masked(predicted, now - last, _HORIZON)
        finite = bool(predicted.isfinite().all())
        self._kept.append(float((displacement != 0).float().mean()) if finite else 0.0)
        if finite:
            target = torch.where(displacement != 0, last + displacement, now)
            self._tester.move(target - now)
        counted = self._steps + self._tester.counted
        self._jumps.append([counted, int(finite), _HORIZON * self._epoch_steps])


def pdt(start: Start) -> _Differential:
    """Predictive Differential Training, as its authors' code has it (ICLR 2026, openreview zSTgrLkpRi).

    After every epoch from the sixth on: DMD of the weights on the 5 snapshots before it predicts 5 epochs on from its
    start, and a weight goes there if the epoch's own change agrees (`acceleration.methods.masks`). An epoch is a fiftieth
    of the budget. No probe; BatchNorm's statistics are computed anew, and that is counted.
    """
    return _Differential(start)
