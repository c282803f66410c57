"""Eigenvalues of reduced operators, and keeping them in the unit disc.

Eigenvectors are trusted only where they are well conditioned. A near-defective operator (a Jordan block, or
nearly) has none to speak of: its matrix functions go through powers of the matrix, and its eigenvalues are moved
on the diagonal of its Schur form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.schur import schur

__all__ = ["Spectrum", "decompose", "falling", "stabilize"]

_STABILIZE_CONDITION = 1e4
"""Eigenvalues are moved one by one up to this condition number of the eigenvectors."""
_FUNCTION_CONDITION = 1e8
"""Functions of the operator go through its eigenvectors up to this condition number."""
_ON_THE_CIRCLE = 1.0 + 1e-6
"""The real part of a moved Schur form may have eigenvalues this far outside; beyond it, the radius divides."""


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

    def chosen(self, shape: tuple[int, int], choice: Tensor) -> Spectrum:
        """Of a batch of ``shape = (C, B)``: for each of B blocks that of one of C candidates, (B,)."""
        rows = choice * shape[1] + torch.arange(shape[1])
        return Spectrum(
            self.values[rows], self.vectors[rows], self.inverse[rows], self.trusted[rows], self.radius[rows]
        )


def decompose(operator: Tensor, *, stable: bool) -> tuple[Tensor, Spectrum, Spectrum]:
    """Return the operator (made stable where asked), its spectrum, and the spectrum before that."""
    if operator.shape[-1] == 1:
        return _decompose_numbers(operator, stable=stable)
    fitted, condition = _spectrum(operator)
    if not stable:
        return operator, fitted, fitted
    return *stabilize(operator, fitted, separable=condition < _STABILIZE_CONDITION), fitted


def stabilize(operator: Tensor, spectrum: Spectrum, *, separable: Tensor) -> tuple[Tensor, Spectrum]:
    """Move eigenvalues outside the unit disc radially onto it.

    Args:
        operator: (B, r, r).
        spectrum: of the operator.
        separable: (B,) bool; where False the eigenvalues are moved on the Schur form instead.
    """
    unstable = spectrum.radius > 1.0
    values = spectrum.values / spectrum.values.abs().clamp(min=1.0)
    moved = ((spectrum.vectors * values[:, None, :]) @ spectrum.inverse).real
    one_by_one = unstable & separable
    operator = torch.where(one_by_one[:, None, None], moved, operator)
    values = torch.where(one_by_one[:, None], values, spectrum.values)
    radius = torch.where(one_by_one, values.abs().amax(dim=-1), spectrum.radius)
    found = Spectrum(values, spectrum.vectors, spectrum.inverse, spectrum.trusted, radius)
    chosen = (unstable & ~separable).nonzero().squeeze(-1)
    if not len(chosen):
        return operator, found
    operator = operator.index_copy(0, chosen, _through_schur(operator[chosen]))
    again, _ = _spectrum(operator[chosen])
    return operator, Spectrum(
        found.values.index_copy(0, chosen, again.values),
        found.vectors.index_copy(0, chosen, again.vectors),
        found.inverse.index_copy(0, chosen, again.inverse),
        found.trusted.index_copy(0, chosen, again.trusted),
        found.radius.index_copy(0, chosen, again.radius),
    )


def falling(values: Tensor, rank: Tensor) -> Tensor:
    """(B, max rank) complex128: each block's first `rank` eigenvalues by falling modulus, then NaN."""
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    ordered = values.gather(-1, order)[:, : int(rank.max()) if len(rank) else 0]
    padding = torch.arange(ordered.shape[-1]) >= rank[:, None]
    return torch.where(padding, complex(torch.nan, torch.nan), ordered)


def _spectrum(operator: Tensor) -> tuple[Spectrum, Tensor]:
    """The spectrum, and the condition number of the eigenvectors."""
    values, vectors = torch.linalg.eig(operator)
    singular = torch.linalg.svdvals(vectors)
    condition = singular[:, 0] / singular[:, -1]  # inf where singular
    trusted = condition < _FUNCTION_CONDITION
    vectors = torch.where(trusted[:, None, None], vectors, torch.eye(operator.shape[-1], dtype=vectors.dtype))
    inverse = torch.linalg.inv(vectors)
    return Spectrum(values, vectors, inverse, trusted, values.abs().amax(dim=-1)), condition


def _through_schur(operator: Tensor) -> Tensor:
    """Unstable operators (B, r, r) with the eigenvalues of their Schur forms moved into the unit disc.

    The real part is taken; where it has still an eigenvalue outside, the operator is divided by its radius.
    """
    unitary, triangular = schur(operator)
    diagonal = triangular.diagonal(dim1=-2, dim2=-1)
    change = diagonal / diagonal.abs().clamp(min=1.0) - diagonal
    moved = (unitary @ (triangular + torch.diag_embed(change)) @ unitary.mH).real
    radius = torch.linalg.eigvals(moved).abs().amax(dim=-1)
    return torch.where((radius > _ON_THE_CIRCLE)[:, None, None], moved / radius[:, None, None], moved)


def _decompose_numbers(operator: Tensor, *, stable: bool) -> tuple[Tensor, Spectrum, Spectrum]:
    """Operators that are single numbers, (B, 1, 1): LAPACK would take a call for each."""
    one = torch.ones_like(operator, dtype=torch.complex128)
    trusted = torch.ones_like(operator[:, 0, 0], dtype=torch.bool)

    def of(numbers: Tensor) -> Spectrum:
        return Spectrum(numbers[:, :, 0].to(one.dtype), one, one, trusted, numbers[:, 0, 0].abs())

    kept = operator.clamp(-1.0, 1.0) if stable else operator
    return kept, of(kept), of(operator)
