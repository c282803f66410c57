"""The reduced operator: least squares from each vector to the next, in the POD basis, in coordinates.

Schmid 2010 (J. Fluid Mech. 656), section 2; Tu et al. 2014 (J. Comput. Dyn. 1), definition 1 and section 2. All
candidates (rank, ridge, correction for noise) are fitted at once: they share one decomposition, and are one more
dimension of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from koopcast_server.koopman.debias import forward_backward, on_common_subspace
from koopcast_server.koopman.pairs import Pairs, Problem
from koopcast_server.koopman.rank import choose_rank
from koopcast_server.koopman.settings import Candidate, OperatorSettings

__all__ = ["Fit", "fit"]

_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True)
class Fit:
    """Reduced operators of C candidates and B blocks; r is the largest rank among them, at least 1; zeros pad.

    Attributes:
        modes: (C, B, e, r), orthonormal POD modes.
        operator: (C, B, r, r), advances mode amplitudes by one stride.
        start: (C, B, r), amplitudes of the vector to go on from.
        rank: (C, B) int64; 0 where there is nothing to fit, or no finite operator.
        residual: (C, B), |Y - A X| / |Y|; NaN where Y is zero.
    """

    modes: Tensor
    operator: Tensor
    start: Tensor
    rank: Tensor
    residual: Tensor


@dataclass(frozen=True, slots=True)
class _Decomposition:
    """U and Σ of ``X = U Σ Vᵀ``, and ``Uᵀ Y V``; leading dimensions (…, B)."""

    modes: Tensor
    singular: Tensor
    cross: Tensor


def fit(pairs: Pairs, problem: Problem, candidates: Sequence[Candidate], settings: OperatorSettings) -> Fit:
    """Minimise ``|A X - Y|² + (ridge σ₁)² |A|²`` within the leading modes of X, for each candidate.

    With ``X = U Σ Vᵀ`` that is ``Uᵀ A U = Uᵀ Y V · Σ / (Σ² + (ridge σ₁)²)``.

    Args:
        pairs: inputs and outputs in coordinates, finite.
        problem: that they are a part of; says what is noise.
        candidates: C of them, those with the same correction for noise next to each other.
        settings: of the operator.
    """
    split = _decompose_squares if problem.from_gram else _decompose
    plain = split(pairs.inputs, pairs.outputs)
    squared = plain.singular.square()
    relative = (max(pairs.inputs.shape[-2:]) * _EPSILON) ** 2
    rounding = torch.maximum(problem.rounding, relative * squared[:, 0])
    noise = torch.maximum(problem.noise, rounding)
    ranks = torch.stack(
        [
            choose_rank(
                squared,
                rounding if settings.keeps_everything(candidate) else noise,
                candidate,
                settings,
                snapshots=pairs.snapshots,
                rows=pairs.rows,
                columns=pairs.columns,
            )
            for candidate in candidates
        ]
    )
    size = max(1, int(ranks.max()))
    fits = []
    position = 0
    for debias, group in groupby(candidates, key=lambda candidate: candidate.debias):
        some = list(group)
        rank = ranks[position : position + len(some)]
        position += len(some)
        ridges = torch.tensor([candidate.ridge for candidate in some], dtype=squared.dtype)
        decomposition = _broadcast(plain, len(some))
        if debias == "total_least_squares":
            inputs, outputs = on_common_subspace(pairs.inputs, pairs.outputs, rank)
            decomposition = _decompose(inputs, outputs)
        fits.append(_reduce(pairs, decomposition, rank, ridges, size, corrected=debias == "forward_backward"))
    return fits[0] if len(fits) == 1 else _joined(fits)


def _decompose(inputs: Tensor, outputs: Tensor) -> _Decomposition:
    modes, singular, right = torch.linalg.svd(inputs, full_matrices=False)
    return _Decomposition(modes, singular, modes.mT @ outputs @ right.mT)


def _decompose_squares(inputs: Tensor, outputs: Tensor) -> _Decomposition:
    """The same by the eigenvectors of ``XᵀX``, twice as fast; singular values below 1e-8 of the largest are zeros."""
    count = min(inputs.shape[-2:])
    squared, right = torch.linalg.eigh(inputs.mT @ inputs)
    squared, right = squared.flip(-1)[:, :count], right.flip(-1)[:, :, :count]
    known = squared > inputs.shape[-1] * _EPSILON * squared[:, :1]
    singular = torch.where(known, squared, 0.0).sqrt()
    inverse = torch.where(known, squared, 1.0).rsqrt()
    modes = (inputs @ right) * torch.where(known, inverse, 0.0)[:, None, :]
    return _Decomposition(modes, singular, modes.mT @ outputs @ right)


def _broadcast(plain: _Decomposition, count: int) -> _Decomposition:
    def repeated(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape)

    return _Decomposition(repeated(plain.modes), repeated(plain.singular), repeated(plain.cross))


def _reduce(
    pairs: Pairs, found: _Decomposition, rank: Tensor, ridges: Tensor, size: int, *, corrected: bool
) -> Fit:
    """(C, B, …) reduced operators from a decomposition."""
    kept = torch.arange(size) < rank[:, :, None]
    singular = found.singular[..., :size]
    alpha = ridges[:, None, None] * found.singular[..., :1]
    weight = singular.square() + alpha.square()
    gain = torch.where(kept & (weight > _TINY), singular / weight.clamp(min=_TINY), 0.0)
    touched = (pairs.inputs != 0).any(dim=-1)  # where no input was, rounding must not move a weight
    modes = torch.where(kept[:, :, None, :] & touched[:, :, None], found.modes[..., :size], 0.0)
    cross = torch.where(kept[..., None], found.cross[..., :size, :size], 0.0)
    operator = cross * gain[:, :, None, :]
    inputs, outputs = modes.mT @ pairs.inputs, modes.mT @ pairs.outputs
    if corrected:
        operator = forward_backward(operator, inputs, outputs, rank)
    sound = operator.isfinite().all(dim=-1).all(dim=-1)  # else: growth beyond what float64 can hold
    operator = torch.where(sound[..., None, None], operator, 0.0)
    start = (modes.mT @ pairs.start[:, :, None]).squeeze(-1)
    residual = _residual(pairs.outputs, outputs, operator @ inputs)
    return Fit(modes, operator, start, torch.where(sound, rank, 0), residual)


def _residual(outputs: Tensor, projected: Tensor, explained: Tensor) -> Tensor:
    """|Y - U Ã Uᵀ X| / |Y| from ``|Y|² - 2 <Uᵀ Y, Ã Uᵀ X> + |Ã Uᵀ X|²``."""
    length = outputs.square().sum(dim=(-2, -1))
    unexplained = length - ((2.0 * projected - explained) * explained).sum(dim=(-2, -1))
    return torch.where(length > 0, (unexplained / length).clamp(min=0.0).sqrt(), torch.nan)


def _joined(fits: Sequence[Fit]) -> Fit:
    return Fit(
        torch.cat([one.modes for one in fits]),
        torch.cat([one.operator for one in fits]),
        torch.cat([one.start for one in fits]),
        torch.cat([one.rank for one in fits]),
        torch.cat([one.residual for one in fits]),
    )
