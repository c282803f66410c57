"""Eigenvalues of reduced operators, and keeping them in the unit disc.

Eigenvectors are trusted only where they are well conditioned. A near-defective operator (a Jordan block, or
nearly) has none to speak of: its matrix functions go through powers of the matrix, and it is made stable by
dividing it by its spectral radius (an ordered Schur form will do better one day, design §2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spectrum", "decompose", "falling", "stabilize"]

_STABILIZE_CONDITION = 1e4
"""Eigenvalues are moved one by one up to this condition number of the eigenvectors."""
_FUNCTION_CONDITION = 1e8
"""Functions of the operator go through its eigenvectors up to this condition number."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigendecomposition of a batch, ``A = W diag(λ) W⁻¹``; where not `trusted`, W is the identity.

    Attributes:
        values: (B, r) complex128.
        vectors: (B, r, r) complex128, columns.
        inverse: (B, r, r) complex128, W⁻¹.
        trusted: (B,) bool, whether functions of the operator may be taken through it.
        radius: (B,) float64, the largest modulus.
    """

    values: Tensor
    vectors: Tensor
    inverse: Tensor
    trusted: Tensor
    radius: Tensor


def decompose(operator: Tensor, *, stable: bool) -> tuple[Tensor, Spectrum, Spectrum]:
    """Return the operator (made stable where asked), its spectrum, and the spectrum before that."""
    values, vectors = torch.linalg.eig(operator)
    singular = torch.linalg.svdvals(vectors)
    condition = singular[:, 0] / singular[:, -1]  # inf where singular
    trusted = condition < _FUNCTION_CONDITION
    vectors = torch.where(trusted[:, None, None], vectors, torch.eye(operator.shape[-1], dtype=vectors.dtype))
    inverse = torch.linalg.inv(vectors)
    fitted = Spectrum(values, vectors, inverse, trusted, values.abs().amax(dim=-1))
    if not stable:
        return operator, fitted, fitted
    return *stabilize(operator, fitted, separable=condition < _STABILIZE_CONDITION), fitted


def stabilize(operator: Tensor, spectrum: Spectrum, *, separable: Tensor) -> tuple[Tensor, Spectrum]:
    """Move eigenvalues outside the unit disc radially onto it.

    Args:
        operator: (B, r, r).
        spectrum: of the operator.
        separable: (B,) bool; where False the whole operator is divided by its spectral radius instead.
    """
    unstable = spectrum.radius > 1.0
    by_radius = unstable & ~separable
    one_by_one = unstable & separable
    modulus = spectrum.values.abs().clamp(min=1.0)
    modulus = torch.where(by_radius[:, None], spectrum.radius[:, None], modulus)
    values = torch.where(unstable[:, None], spectrum.values / modulus, spectrum.values)
    moved = ((spectrum.vectors * values[:, None, :]) @ spectrum.inverse).real
    operator = torch.where(one_by_one[:, None, None], moved, operator)
    operator = torch.where(by_radius[:, None, None], operator / spectrum.radius[:, None, None], operator)
    radius = torch.where(unstable, values.abs().amax(dim=-1), spectrum.radius)
    return operator, Spectrum(values, spectrum.vectors, spectrum.inverse, spectrum.trusted, radius)


def falling(values: Tensor, rank: Tensor) -> Tensor:
    """(B, max rank) complex128: each block's first `rank` eigenvalues by falling modulus, then NaN."""
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    ordered = values.gather(-1, order)[:, : int(rank.max()) if len(rank) else 0]
    padding = torch.arange(ordered.shape[-1]) >= rank[:, None]
    return torch.where(padding, complex(torch.nan, torch.nan), ordered)
