"""The reduced operator: least squares from each vector to the next, in the POD basis, off the Gram alone.

Schmid 2010 (J. Fluid Mech. 656), section 2; Tu et al. 2014 (J. Comput. Dyn. 1), definition 1 and section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.rank import choose_rank
from koopcast_server.koopman.settings import OperatorSettings

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, slots=True)
class Fit:
    """A reduced operator per block; r is the largest rank among them, at least 1; zeros pad the others.

    Attributes:
        modes: (B, m - 1, r), the orthonormal POD modes as combinations of the inputs x_1 … x_{m-1}.
        operator: (B, r, r), advances mode amplitudes by one stride.
        start: (B, r), amplitudes of x_m.
        rank: (B,) int64; 0 where there is nothing to fit, or no finite operator.
        residual: (B,), |Y - A X| / |Y|; NaN where Y is zero.
    """

    modes: Tensor
    operator: Tensor
    start: Tensor
    rank: Tensor
    residual: Tensor


def fit(gram: Tensor, noise: Tensor, snapshots: int, settings: OperatorSettings) -> Fit:
    """Minimise ``|A X - Y|² + (ridge σ₁)² |A|²`` within the leading modes of X.

    With ``XᵀX = V Σ² Vᵀ`` and modes ``U = X V Σ⁻¹`` that is
    ``Uᵀ A U = Σ⁻¹ Vᵀ (XᵀY) V Σ⁻¹ · σ² / (σ² + (ridge σ₁)²)``.

    Args:
        gram: (B, m, m) float64, <x_i, x_j> of consecutive vectors, m >= 2, finite; X is x_1 … x_{m-1}.
        noise: (B,) squared length of the noise in one vector.
        snapshots: weight snapshots these vectors are made of, for the rank rule.
        settings: of the operator.
    """
    inputs, cross = gram[:, :-1, :-1], gram[:, :-1, 1:]
    squared, vectors = torch.linalg.eigh(inputs)
    squared, vectors = squared.flip(-1).clamp(min=0.0), vectors.flip(-1)
    rank = choose_rank(squared, noise, snapshots, settings)
    size = max(1, int(rank.max()))
    kept = torch.arange(size) < rank[:, None]
    squared = squared[:, :size]
    inverse = torch.where(kept, squared.clamp(min=torch.finfo(squared.dtype).tiny).rsqrt(), 0.0)
    modes = vectors[:, :, :size] * inverse[:, None, :]
    damping = torch.where(kept, squared / (squared + settings.ridge**2 * squared[:, :1]), 0.0)
    projected = modes.mT @ cross @ modes  # Uᵀ Y V Σ⁻¹
    operator = projected * damping[:, None, :]
    start = (modes.mT @ gram[:, :-1, -1:]).squeeze(-1)
    residual = _residual(gram, squared, projected, operator)
    sound = operator.isfinite().all(dim=-1).all(dim=-1)  # else: growth beyond what float64 can hold
    operator = torch.where(sound[:, None, None], operator, 0.0)
    return Fit(modes, operator, start, torch.where(sound, rank, 0), residual)


def _residual(gram: Tensor, squared: Tensor, projected: Tensor, operator: Tensor) -> Tensor:
    """|Y - U Ã Uᵀ X| / |Y| from ``|Y|² - 2 <Uᵀ Y V, Ã Σ> + |Ã Σ|²``."""
    outputs = gram.diagonal(dim1=-2, dim2=-1)[:, 1:].sum(dim=-1)
    weights = squared[:, None, :]  # Ã Σ and Uᵀ Y V = projected Σ
    explained = ((2.0 * projected - operator) * operator * weights).sum(dim=(-2, -1))
    return torch.where(outputs > 0, ((outputs - explained) / outputs).clamp(min=0.0).sqrt(), torch.nan)
