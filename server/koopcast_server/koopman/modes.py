"""The modes of an operator, for people: what decays how fast, how much of the motion it is, and how true it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.eigen import eigenpairs
from koopcast_server.koopman.pairs import Pairs

__all__ = ["Modes", "modes_of"]

_CONDITION = 1e12
"""Beyond this condition number of the eigenvectors amplitudes are not told apart: energies are NaN."""


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes of B blocks by falling modulus of their eigenvalues, r at most; NaN beyond a block's rank.

    Attributes:
        eigenvalues: (B, r) complex128, per stride, before stabilisation.
        energies: (B, r), share of the motion that a mode carries: its mean squared amplitude over the window's vectors,
            times the squared length of the mode, over the sum of these. They sum up to 1.
        decay_strides: (B, r), strides in which it decays by a factor e, ``-1 / ln |λ|``; negative where it grows,
            infinite on the unit circle, 0 for the eigenvalue 0.
        residuals: (B, r), ``|A v - λ v| / |v|`` of the eigenpair, A being the least-squares operator on the window's
            data, not only its part within the POD modes: Colbrook, Ayton & Szoke 2023 (J. Fluid Mech. 955), section 3,
            for linear observables.
    """

    eigenvalues: Tensor
    energies: Tensor
    decay_strides: Tensor
    residuals: Tensor


def modes_of(pairs: Pairs, basis: Tensor, operator: Tensor, rank: Tensor) -> Modes:
    """Modes of one operator a block.

    Args:
        pairs: what it was fitted to.
        basis: (B, e, r), POD modes, zeros beyond the rank.
        operator: (B, r, r), before stabilisation.
        rank: (B,).
    """
    values, vectors = eigenpairs(operator)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    values = values.gather(-1, order)
    vectors = vectors.gather(-1, order[:, None, :].expand_as(vectors))
    kept = torch.arange(values.shape[-1]) < rank[:, None]
    nothing = torch.where(kept, 0.0, torch.nan)
    decay = -1.0 / values.abs().log()
    return Modes(
        eigenvalues=torch.where(kept, values, complex(torch.nan, torch.nan)),
        energies=_energies(pairs, basis, vectors, kept) + nothing,
        decay_strides=torch.where(values.abs() == 1.0, torch.inf, decay) + nothing,
        residuals=_residuals(pairs, basis, values, vectors) + nothing,
    )


def _energies(pairs: Pairs, basis: Tensor, vectors: Tensor, kept: Tensor) -> Tensor:
    singular = torch.linalg.svdvals(vectors)
    sound = singular[:, 0] < _CONDITION * singular[:, -1]
    eye = torch.eye(vectors.shape[-1], dtype=vectors.dtype)
    safe = torch.where(sound[:, None, None], vectors, eye)
    amplitudes = torch.linalg.solve(safe, (basis.mT @ pairs.inputs).to(safe.dtype))
    energy = (
        amplitudes.abs().square().mean(dim=-1)
    )  # eigenvectors have length 1, and the basis is orthonormal
    energy = torch.where(kept, energy, 0.0)
    total = energy.sum(dim=-1, keepdim=True)
    return torch.where(sound[:, None] & (total > 0), energy / total, torch.nan)


def _residuals(pairs: Pairs, basis: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Least-squares images of the eigenvectors, in the full space of coordinates, against λ times them."""
    projected = (basis.mT @ pairs.inputs).to(vectors.dtype)
    preimages = torch.linalg.pinv(projected) @ vectors  # combinations of inputs that give the eigenvectors
    images = pairs.outputs.to(vectors.dtype) @ preimages
    lengths = torch.linalg.vector_norm(basis.to(vectors.dtype) @ vectors, dim=-2)
    apart = torch.linalg.vector_norm(
        images - (basis.to(vectors.dtype) @ vectors) * values[:, None, :], dim=-2
    )
    return torch.where(lengths > 0, apart / lengths.clamp(min=1e-300), torch.nan)
