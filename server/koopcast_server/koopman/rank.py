"""How many modes to keep: one function per rule, each (B,) from singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from koopcast_server.koopman.settings import Candidate, OperatorSettings

__all__ = [
    "AUTO_ENERGY",
    "auto_rank",
    "choose_rank",
    "energy_rank",
    "gavish_donoho_rank",
    "numerical_rank",
]

AUTO_ENERGY = 1.0 - 1e-10
"""Share of the squared singular values that ``"auto"`` keeps: modes down to 1e-5 of the largest. Coarser shares drop real
modes: 1 - 1e-8 costs a third of the accuracy on deterministic training (``tests/bench/calibration``), 0.9999 far more.
What is only rounding, the noise floor of `numerical_rank` removes."""


def choose_rank(
    squared: Tensor,
    floor: Tensor,
    candidate: Candidate,
    settings: OperatorSettings,
    *,
    snapshots: int,
    rows: Tensor,
    columns: int,
) -> Tensor:
    """Rank by the candidate's rule, never above the numerical rank; 0 where all singular values are 0.

    Args:
        squared: (B, q) squared singular values, falling.
        floor: (B,) squared singular value below which there is only rounding or noise.
        candidate: names the rule.
        settings: of the operator.
        snapshots: weight snapshots that the fit uses.
        rows: (B,) float64, of the matrix that has these singular values.
        columns: of that matrix.
    """
    numerical = numerical_rank(squared, floor)
    if candidate.rank_rule == "fixed":
        rank = torch.full_like(numerical, candidate.rank)
    elif candidate.rank_rule == "energy":
        rank = energy_rank(squared, settings.energy)
    elif candidate.rank_rule == "gavish_donoho":
        rank = gavish_donoho_rank(squared, rows, columns)
    else:
        rank = auto_rank(squared, snapshots, common_part=settings.observable == "state")
    return torch.minimum(rank, numerical)


def numerical_rank(squared: Tensor, floor: Tensor) -> Tensor:
    """Singular values above the floor; at least 1 if any is not 0."""
    return torch.maximum((squared > floor[:, None]).sum(dim=-1), (squared[:, 0] > 0).long())


def energy_rank(squared: Tensor, energy: float) -> Tensor:
    """The least rank whose singular values hold the share `energy` of the sum of squares."""
    missing = squared.flip(-1).cumsum(dim=-1).flip(-1)  # what the ranks 0, 1, … leave out
    allowed = (1.0 - energy) * missing[:, :1]
    return (missing > allowed).sum(dim=-1)


def gavish_donoho_rank(squared: Tensor, rows: Tensor, columns: int) -> Tensor:
    """Singular values above ω(β) times their median: the optimal hard threshold for white noise of unknown level.

    Gavish & Donoho 2014 (IEEE Trans. Inf. Theory 60), section I; ω by their approximation (equation 5), with β the
    aspect ratio of the matrix. At least 1 where anything moved. Values that are not given are zeros: without noise
    the median may be one, and then everything is kept.

    Args:
        squared: (B, q) squared singular values, falling.
        rows: (B,) float64, rows of the matrices.
        columns: of the matrices.
    """
    beta = rows.clamp(max=columns) / rows.clamp(min=columns)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    # Coordinates may have an axis more than the matrix has rows, zeros; or fewer than it has singular values, zeros too.
    count = rows.clamp(max=columns).long()[:, None]
    places = torch.arange(squared.shape[-1], device=squared.device)
    singular = torch.where(places < count, squared, 0.0).sqrt()
    middle = torch.cat([(count - 1) // 2, count // 2], dim=-1)
    padded = torch.cat([singular, singular.new_zeros((len(singular), 1))], dim=-1)
    median = padded.gather(-1, middle.clamp(max=singular.shape[-1])).mean(dim=-1)
    return (singular > (omega * median)[:, None]).sum(dim=-1).clamp(min=1)


def auto_rank(squared: Tensor, snapshots: int, *, common_part: bool) -> Tensor:
    """Energy 1 - 1e-10, at most half as many as snapshots, at least 1.

    Where the vectors share a large `common_part` (weights do), that is the first mode and the energy is that
    of the others: else nothing but the common part would ever be kept.
    """
    rank = energy_rank(squared[:, 1:], AUTO_ENERGY) + 1 if common_part else energy_rank(squared, AUTO_ENERGY)
    return rank.clamp(min=1, max=max(1, snapshots // 2))
