"""A complex Schur form, ``A = Q T Qᴴ``, for the few operators whose eigenvectors cannot be trusted.

Unitary transformations lose no digits however close the eigenvectors are to each other. PyTorch has no Schur
decomposition, so it is built by deflation (Golub & Van Loan 2013, section 7.1): take one eigenvector, turn it onto
the first axis by a Householder reflection, and go on with what is left. Each step is one batched call, and the
operators are small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from koopcast_server.koopman.eigen import eigenpairs

__all__ = ["schur"]


def schur(operator: Tensor) -> tuple[Tensor, Tensor]:
    """Unitary Q and upper triangular T, both (B, r, r) complex128, of real or complex operators (B, r, r)."""
    blocks, size = operator.shape[0], operator.shape[-1]
    triangular = operator.to(torch.complex128).clone()
    unitary = torch.eye(size, dtype=torch.complex128).expand(blocks, size, size).clone()
    for corner in range(size - 1):
        _, vectors = eigenpairs(triangular[:, corner:, corner:])
        reflection = _onto_first_axis(vectors[:, :, 0])
        triangular[:, corner:, :] = reflection @ triangular[:, corner:, :]
        triangular[:, :, corner:] = triangular[:, :, corner:] @ reflection
        unitary[:, :, corner:] = unitary[:, :, corner:] @ reflection
        triangular[:, corner + 1 :, corner] = 0.0
    return unitary, triangular


def _onto_first_axis(vectors: Tensor) -> Tensor:
    """(B, r, r) Hermitian unitary reflections that turn unit vectors (B, r) onto the first axis, up to a phase."""
    first = vectors[:, 0]
    phase = torch.where(first.abs() > 0, first / first.abs().clamp(min=1e-300), torch.ones_like(first))
    normal = vectors.clone()
    normal[:, 0] += phase * torch.linalg.vector_norm(vectors, dim=-1)
    normal = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True).clamp(min=1e-300)
    eye = torch.eye(vectors.shape[-1], dtype=vectors.dtype)
    reflections: Tensor = eye - 2.0 * normal[:, :, None] * normal[:, None, :].conj()
    return reflections
