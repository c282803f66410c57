"""How many modes to keep: one function per rule, each (B,) from singular values.

The next rules (Gavish & Donoho 2014; the back-tested rank) belong here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from koopcast_server.koopman.settings import OperatorSettings

__all__ = ["AUTO_ENERGY", "auto_rank", "choose_rank", "energy_rank", "numerical_rank"]

AUTO_ENERGY = 1.0 - 1e-8
"""Share of the squared singular values that ``"auto"`` keeps: modes down to 1e-4 of the largest. A coarser 0.9999 drops
real modes below a hundredth; what is only rounding, the noise floor of `numerical_rank` removes."""

_ROUNDING = 32 * torch.finfo(torch.float64).eps
"""Squared singular values below this share of the largest, per vector, are rounding."""


def choose_rank(squared: Tensor, noise: Tensor, snapshots: int, settings: OperatorSettings) -> Tensor:
    """Rank by the rule in `settings`, never above the numerical rank; 0 where all singular values are 0.

    Args:
        squared: (B, m) squared singular values, falling.
        noise: (B,) squared singular value below which there is only noise.
        snapshots: weight snapshots that the fit uses.
        settings: of the operator.
    """
    numerical = numerical_rank(squared, noise)
    if settings.rank_rule == "fixed":
        rank = torch.full_like(numerical, settings.rank)
    elif settings.rank_rule == "energy":
        rank = energy_rank(squared, settings.energy)
    else:
        rank = auto_rank(squared, snapshots, common_part=settings.observable == "state")
    return torch.minimum(rank, numerical)


def numerical_rank(squared: Tensor, noise: Tensor) -> Tensor:
    """Singular values above rounding, of the Gram and of what it was made from; at least 1 if any is not 0.

    A Gram squares the condition: singular values are known to half the digits of float64.
    """
    largest = squared[:, 0]
    floor = torch.maximum(_ROUNDING * squared.shape[1] * largest, noise)
    return torch.maximum((squared > floor[:, None]).sum(dim=-1), (largest > 0).long())


def energy_rank(squared: Tensor, energy: float) -> Tensor:
    """The least rank whose singular values hold the share `energy` of the sum of squares."""
    missing = squared.flip(-1).cumsum(dim=-1).flip(-1)  # what the ranks 0, 1, … leave out
    allowed = (1.0 - energy) * missing[:, :1]
    return (missing > allowed).sum(dim=-1)


def auto_rank(squared: Tensor, snapshots: int, *, common_part: bool) -> Tensor:
    """Energy 1 - 1e-8, at most half as many as snapshots, at least 1.

    Where the vectors share a large `common_part` (weights do), that is the first mode and the energy is that
    of the others: else nothing but the common part would ever be kept.
    """
    rank = energy_rank(squared[:, 1:], AUTO_ENERGY) + 1 if common_part else energy_rank(squared, AUTO_ENERGY)
    return rank.clamp(min=1, max=max(1, snapshots // 2))
