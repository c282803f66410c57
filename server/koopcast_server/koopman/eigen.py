"""Eigenvalues and eigenvectors that always come back.

LAPACK's QR iteration gives up on some finite matrices: those whose entries are so far apart that their products
underflow. What it is given here differs from the matrix by less than its own rounding, and does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eigenpairs"]

_EPSILON = torch.finfo(torch.float64).eps


def eigenpairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eig`, to within the rounding that it has anyway, without its failures.

    Entries below the square of float64's epsilon, relative to the largest, are taken for zero. A matrix that is
    refused even so is taken with its last digits changed, in a pattern that is always the same.

    Args:
        matrices: (…, r, r) float64 or complex128, finite.

    Returns:
        Eigenvalues (…, r) and eigenvectors of length 1 as columns (…, r, r), both complex128.
    """
    largest = matrices.abs().amax(dim=(-2, -1), keepdim=True)
    matrices = torch.where(matrices.abs() > _EPSILON**2 * largest, matrices, 0.0)
    try:
        values, vectors = torch.linalg.eig(matrices)
    except torch.linalg.LinAlgError:  # one of the batch: find it
        size = matrices.shape[-1]
        pairs = [_one(matrix) for matrix in matrices.reshape(-1, size, size)]
        values = torch.stack([one for one, _ in pairs]).reshape(matrices.shape[:-1])
        vectors = torch.stack([one for _, one in pairs]).reshape(matrices.shape)
    return values, vectors


def _one(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Of a single matrix (r, r)."""
    try:
        values, vectors = torch.linalg.eig(matrix)
    except torch.linalg.LinAlgError:
        pattern = torch.rand(matrix.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        values, vectors = torch.linalg.eig(matrix + _EPSILON * matrix.abs().max() * (pattern - 0.5))
    return values, vectors
