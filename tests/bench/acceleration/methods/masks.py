"""The mask of Predictive Differential Training (ICLR 2026): which weights' jumps are kept."""

from __future__ import annotations

from torch import Tensor

__all__ = ["masked"]


def masked(displacement: Tensor, last_change: Tensor, horizon: int) -> Tensor:
    """`displacement` where it goes on as the weight went, 0 elsewhere.

    A jump Δ of a weight whose last observed change was d is kept if the signs agree and |d| <= |Δ| <= (τ + 1) |d|, where τ
    is the horizon in snapshots. A weight that did not change stays.

    Args:
        displacement: (n).
        last_change: (n).
        horizon: in snapshots.
    """
    jump, change = displacement.abs(), last_change.abs()
    kept = (
        (displacement.sign() * last_change.sign() > 0) & (jump >= change) & (jump <= (horizon + 1) * change)
    )
    return displacement * kept
