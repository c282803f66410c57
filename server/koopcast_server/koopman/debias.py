"""Corrections for noise in the snapshots: plain least squares shrinks eigenvalues toward zero when inputs are noisy.

Dawson, Hemati, Williams & Rowley 2016 (Exp. Fluids 57), sections 2.2 to 2.4; Hemati, Rowley, Deem & Cattafesta 2017
(Theor. Comput. Fluid Dyn. 31).
"""

from __future__ import annotations

import torch
from torch import Tensor

from koopcast_server.koopman.eigen import eigenpairs

__all__ = ["forward_backward", "on_common_subspace"]

_CONDITION = 1e8
"""A backward operator, or eigenvectors, beyond this condition number say nothing: the forward operator stays."""


def on_common_subspace(inputs: Tensor, outputs: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Total least squares: inputs and outputs on the leading right singular vectors of both, stacked.

    Args:
        inputs: (B, e, p).
        outputs: (B, e, p).
        rank: (C, B), directions to keep.

    Returns:
        Both as (C, B, e, p).
    """
    right = torch.linalg.svd(torch.cat([inputs, outputs], dim=1), full_matrices=False)[2]
    kept = torch.arange(right.shape[1]) < rank[:, :, None]
    directions = torch.where(kept[..., None], right, 0.0)
    projection = directions.mT @ directions
    return inputs @ projection, outputs @ projection


def forward_backward(forward: Tensor, inputs: Tensor, outputs: Tensor, rank: Tensor) -> Tensor:
    """``(A_f A_b⁻¹)^½``: noise shrinks the forward and the backward operator alike, and cancels in their quotient.

    The root's signs are those nearest to the forward operator, whose eigenvalues it corrects. Where the backward
    operator cannot be inverted, or the quotient has no trustworthy eigenvectors, the forward operator stays.

    Args:
        forward: (C, B, r, r), the forward operator in POD coordinates, zeros beyond the rank.
        inputs: (C, B, r, p), in POD coordinates, zeros beyond the rank.
        outputs: (C, B, r, p), likewise.
        rank: (C, B).

    Returns:
        (C, B, r, r).
    """
    size = forward.shape[-1]
    kept = torch.arange(size) < rank[:, :, None]
    inside = kept[..., None] & kept[..., None, :]
    backward = inputs @ torch.linalg.pinv(outputs)
    padding = torch.diag_embed((~kept).to(forward.dtype))
    backward = torch.where(inside & backward.isfinite(), backward, 0.0) + padding
    invertible = _condition(backward) < _CONDITION
    eye = torch.eye(size, dtype=forward.dtype)
    backward = torch.where(invertible[..., None, None], backward, eye)
    quotient = forward @ torch.linalg.inv(backward)
    finite = quotient.isfinite().all(-1).all(-1)
    quotient = torch.where(finite[..., None, None], quotient, 0.0)
    values, vectors = eigenpairs(quotient)
    separable = _condition(vectors) < _CONDITION
    vectors = torch.where(separable[..., None, None], vectors, eye.to(vectors.dtype))
    inverse = torch.linalg.inv(vectors)
    root = values.sqrt()
    nearby = (inverse @ forward.to(vectors.dtype) @ vectors).diagonal(dim1=-2, dim2=-1)
    root = torch.where((root.conj() * nearby).real < 0, -root, root)
    corrected = ((vectors * root[..., None, :]) @ inverse).real
    good = (invertible & finite & separable)[..., None, None] & corrected.isfinite()
    return torch.where(good & inside, corrected, forward)


def _condition(matrices: Tensor) -> Tensor:
    singular = torch.linalg.svdvals(matrices)
    return torch.where(
        singular[..., -1] > 0, singular[..., 0] / singular[..., -1].clamp(min=1e-300), torch.inf
    )
