"""Eigenvalues of reduced operators, and keeping them in the unit disc.

Eigenvectors are trusted only where they are well conditioned. A near-defective operator (a Jordan block, or
nearly) has none to speak of: its matrix functions go through powers of the matrix, and its eigenvalues are moved
on the diagonal of its Schur form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.eigen import eigenpairs, eigenvalues
from koopcast_server.koopman.schur import schur

__all__ = ["Functions", "Spectrum", "decompose", "falling", "stabilized"]

_STABILIZE_CONDITION = 1e4
"""Eigenvalues are moved one by one up to this condition number of the eigenvectors."""
_FUNCTION_CONDITION = 1e8
"""Functions of the operator go through its eigenvectors up to this condition number."""
_SQUARINGS = 5
"""The 32nd power tells most stable operators."""
_ON_THE_CIRCLE = 1.0 + 1e-6
"""The real part of a moved Schur form may have eigenvalues this far outside; beyond it, the radius divides."""


@dataclass(frozen=True, slots=True)
class Functions:
    """What functions of a batch of operators are taken through, ``A = W diag(λ) W⁻¹``.

    Attributes:
        vectors: (B, r, r) complex128, W, columns; the identity where not `trusted`.
        inverse: (B, r, r) complex128, W⁻¹.
        trusted: (B,) bool, whether functions of the operator may be taken through these.
    """

    vectors: Tensor
    inverse: Tensor
    trusted: Tensor


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues of a batch of operators.

    Attributes:
        values: (B, r) complex128.
        radius: (B,) float64, the largest modulus.
        functions: the eigenvectors; None where they were not asked for.
    """

    values: Tensor
    radius: Tensor
    functions: Functions | None

    def chosen(self, shape: tuple[int, int], choice: Tensor) -> Spectrum:
        """Of a batch of ``shape = (C, B)``: for each of B blocks that of one of C candidates, (B,)."""
        rows = choice * shape[1] + torch.arange(shape[1])
        some = self.functions
        functions = some and Functions(some.vectors[rows], some.inverse[rows], some.trusted[rows])
        return Spectrum(self.values[rows], self.radius[rows], functions)


def decompose(operator: Tensor, *, stable: bool, functions: bool = True) -> tuple[Tensor, Spectrum, Spectrum]:
    """Return the operator (made stable where asked), its spectrum, and the spectrum before that.

    Args:
        operator: (B, r, r).
        stable: move eigenvalues outside the unit disc radially onto it.
        functions: find the eigenvectors too, four times the work.
    """
    if operator.shape[-1] == 1:
        return _decompose_numbers(operator, stable=stable)
    fitted = _whole(operator)[0] if functions else _eigenvalues(operator)
    unstable = (fitted.radius > 1.0).nonzero().squeeze(-1)
    if not stable or not len(unstable):
        return operator, fitted, fitted
    moved = _moved(operator[unstable])
    operator = operator.index_copy(0, unstable, moved)
    again = _whole(moved)[0] if functions else _eigenvalues(moved)
    kept, new = fitted.functions, again.functions
    mended = None
    if kept is not None and new is not None:
        mended = Functions(
            kept.vectors.index_copy(0, unstable, new.vectors),
            kept.inverse.index_copy(0, unstable, new.inverse),
            kept.trusted.index_copy(0, unstable, new.trusted),
        )
    values = fitted.values.index_copy(0, unstable, again.values)
    radius = fitted.radius.index_copy(0, unstable, again.radius)
    return operator, Spectrum(values, radius, mended), fitted


def stabilized(operator: Tensor) -> Tensor:
    """(B, r, r) operators with eigenvalues outside the unit disc moved onto it, when nothing else is asked for.

    Most are found to be stable without their eigenvalues: where a power of a matrix has a norm of at most 1, it is.
    """
    if operator.shape[-1] == 1:
        return operator.clamp(-1.0, 1.0)
    power = operator
    for _ in range(_SQUARINGS):
        power = power @ power
    doubtful = (~(torch.linalg.matrix_norm(power) <= 1.0)).nonzero().squeeze(-1)
    if not len(doubtful):
        return operator
    some = operator[doubtful]
    unstable = (_eigenvalues(some).radius > 1.0).nonzero().squeeze(-1)
    return operator.index_copy(0, doubtful[unstable], _moved(some[unstable])) if len(unstable) else operator


def falling(values: Tensor, rank: Tensor) -> Tensor:
    """(B, max rank) complex128: each block's first `rank` eigenvalues by falling modulus, then NaN."""
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    ordered = values.gather(-1, order)[:, : int(rank.max()) if len(rank) else 0]
    padding = torch.arange(ordered.shape[-1]) >= rank[:, None]
    return torch.where(padding, complex(torch.nan, torch.nan), ordered)


def _eigenvalues(operator: Tensor) -> Spectrum:
    values = eigenvalues(operator)
    return Spectrum(values, values.abs().amax(dim=-1), None)


def _whole(operator: Tensor) -> tuple[Spectrum, Tensor]:
    """The spectrum with its functions, and the condition number of the eigenvectors (at most r times too large)."""
    values, vectors = eigenpairs(operator)
    inverse, failed = torch.linalg.inv_ex(vectors)
    condition = torch.linalg.matrix_norm(vectors) * torch.linalg.matrix_norm(inverse)
    condition = torch.where((failed == 0) & condition.isfinite(), condition, torch.inf)
    trusted = (condition < _FUNCTION_CONDITION)[:, None, None]
    eye = torch.eye(operator.shape[-1], dtype=vectors.dtype)
    functions = Functions(
        torch.where(trusted, vectors, eye), torch.where(trusted, inverse, eye), trusted[:, 0, 0]
    )
    return Spectrum(values, values.abs().amax(dim=-1), functions), condition


def _moved(operator: Tensor) -> Tensor:
    """Unstable operators with their eigenvalues on the unit circle: one by one, or on the Schur form."""
    spectrum, condition = _whole(operator)
    functions = spectrum.functions
    values = spectrum.values / spectrum.values.abs().clamp(min=1.0)
    separable = condition < _STABILIZE_CONDITION
    moved = operator
    if functions is not None:
        moved = ((functions.vectors * values[:, None, :]) @ functions.inverse).real
    others = (~separable).nonzero().squeeze(-1)
    return moved.index_copy(0, others, _through_schur(operator[others])) if len(others) else moved


def _through_schur(operator: Tensor) -> Tensor:
    """Unstable operators (B, r, r) with the eigenvalues of their Schur forms moved into the unit disc.

    The real part is taken; where it has still an eigenvalue outside, the operator is divided by its radius.
    """
    unitary, triangular = schur(operator)
    diagonal = triangular.diagonal(dim1=-2, dim2=-1)
    change = diagonal / diagonal.abs().clamp(min=1.0) - diagonal
    moved = (unitary @ (triangular + torch.diag_embed(change)) @ unitary.mH).real
    radius = eigenvalues(moved).abs().amax(dim=-1)
    return torch.where((radius > _ON_THE_CIRCLE)[:, None, None], moved / radius[:, None, None], moved)


def _decompose_numbers(operator: Tensor, *, stable: bool) -> tuple[Tensor, Spectrum, Spectrum]:
    """Operators that are single numbers, (B, 1, 1): LAPACK would take a call for each."""
    one = torch.ones_like(operator, dtype=torch.complex128)
    trusted = torch.ones_like(operator[:, 0, 0], dtype=torch.bool)

    def of(numbers: Tensor) -> Spectrum:
        functions = Functions(one, one, trusted)
        return Spectrum(numbers[:, :, 0].to(one.dtype), numbers[:, 0, 0].abs(), functions)

    kept = operator.clamp(-1.0, 1.0) if stable else operator
    return kept, of(kept), of(operator)
