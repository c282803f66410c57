"""The R factor of a least-squares problem that grows row by row.

The rows are the pairs ``[x_t, x_(t+1)]`` of one block's consecutive vectors, 2 s numbers each. Of all of them,
however many there were, the upper triangular R of a QR decomposition holds what least squares needs::

    [X, Y] = Q R      R = | R11  R12 |      X Uᵀ ≈ Y   ->   Uᵀ = pinv(R11) R12,   what is left: R22
                          |  0   R22 |

New rows are appended by decomposing R with the new rows below it (Golub & Van Loan, Matrix Computations, 4th
edition, §6.5.3, for one row; here many rows share one decomposition, which is what LAPACK is fast at). Unlike
the moments ``XᵀX`` and ``YᵀX``, R does not square the condition number.

Batches of blocks go to LAPACK, block after block inside one call; blocks of a single number have a closed form.
A Householder decomposition written out over the batch was measured and dropped: from 2 to 128 numbers and with
buffers as long as `Segment` has them, it was never faster (11 numbers, 44 new rows: 13 against 12 µs a block).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["absorb", "batch_blocks"]

_BATCH_BYTES_ON_CPU = 2 << 20
"""Blocks decomposed in one call: so many that their rows fill about this much (a cache), and at least one."""
_BATCH_BYTES = 256 << 20
"""The same on other devices, where every call has a price."""
_LARGEST_EXPONENT = 1000
"""Blocks are brought near 1 by a power of two between 2^-1000 and 2^1000: its reciprocal is a normal number."""


def batch_blocks(size: int, rows: int, device: torch.device) -> int:
    """Blocks of `size` numbers to work on at once when `rows` pairs are appended to each."""
    limit = _BATCH_BYTES_ON_CPU if device.type == "cpu" else _BATCH_BYTES
    return max(1, limit // (8 * 2 * size * (2 * size + rows)))


def absorb(factor: Tensor, vectors: Tensor, forgetting: float = 1.0) -> Tensor:
    """Append the pairs of consecutive vectors to least-squares problems. B blocks of s numbers, K new pairs.

    Backward stable, column by column: the result belongs to rows that differ from those given by some roundings
    relative to the norm of their column. (Not where a block's columns are 300 orders of magnitude apart: there the
    small ones may be taken for zero.) Entries beyond float64's range become the largest float64: sums of squares
    do not overflow, but the norm of a column may. There is no non-finite result of finite input.

    Args:
        factor: (B, 2 s, 2 s) float64, upper triangular: R so far; zeros before the first pair.
        vectors: (B, K + 1, s) float64, finite, oldest first. The first one is the second vector of the last pair
            that `factor` holds. Nothing is appended where there are fewer than two.
        forgetting: weight of a pair relative to its successor's, in (0, 1]. The newest pair weighs 1.

    Returns:
        (B, 2 s, 2 s) float64, a new tensor: R with a diagonal >= 0, so that it is the same for the same rows
        whichever way they came (as far as their rank and rounding allow).

    Raises:
        ValueError: for shapes that do not belong together or a forgetting factor out of range.
    """
    blocks, count, size = vectors.shape
    if factor.shape != (blocks, 2 * size, 2 * size):
        raise ValueError(f"factor must have shape {(blocks, 2 * size, 2 * size)}, not {tuple(factor.shape)}")
    if not 0.0 < forgetting <= 1.0:
        raise ValueError(f"forgetting must be in (0, 1], not {forgetting}")
    if count < 2:
        return factor.clone()
    ages = torch.arange(count - 2, -1, -1, dtype=torch.float64, device=factor.device)
    weights = forgetting ** (0.5 * ages)
    old_weight = forgetting ** (0.5 * (count - 1))
    result = torch.empty_like(factor)
    append = _append_numbers if size == 1 else _append_rows
    step = batch_blocks(size, count - 1, factor.device)
    for first in range(0, blocks, step):
        part = slice(first, first + step)
        append(factor[part], vectors[part], old_weight, weights, result[part])
    return result


def _append_rows(factor: Tensor, vectors: Tensor, old_weight: float, weights: Tensor, out: Tensor) -> None:
    """`absorb` for one batch: the new rows below R, decomposed again."""
    size, new = vectors.shape[2], vectors.shape[1] - 1
    stack = factor.new_empty(
        (len(factor), 2 * size, 2 * size + new)
    ).mT  # columns side by side, as LAPACK has them
    torch.mul(factor, old_weight, out=stack[:, : 2 * size])
    torch.mul(vectors[:, :-1], weights[:, None], out=stack[:, 2 * size :, :size])
    torch.mul(vectors[:, 1:], weights[:, None], out=stack[:, 2 * size :, size:])
    down, up = _scales(stack.mT.flatten(1).abs().amax(dim=1)[:, None, None])
    stack.mul_(down)
    triangle = torch.linalg.qr(stack, mode="r").R
    signs = torch.where(triangle.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    _write_scaled(triangle.mul_(signs[:, :, None]), up, out)


def _append_numbers(factor: Tensor, vectors: Tensor, old_weight: float, weights: Tensor, out: Tensor) -> None:
    """`absorb` for one batch of blocks of a single number: two columns, the second freed of the first.

    Gram–Schmidt with the residual's norm taken from the residual itself is as accurate here as reflections.
    """
    numbers, new = vectors[:, :, 0].t(), vectors.shape[1] - 1
    columns = factor.new_empty((2, new + 1, len(factor)))  # R22 stands apart: there the first column is zero
    torch.mul(factor[:, 0].t(), old_weight, out=columns[:, 0])
    torch.mul(numbers[:-1], weights[:, None], out=columns[0, 1:])
    torch.mul(numbers[1:], weights[:, None], out=columns[1, 1:])
    apart = old_weight * factor[:, 1, 1]
    largest = columns.abs().amax(dim=1)
    torch.maximum(largest[1], apart.abs(), out=largest[1])
    down, up = _scales(largest)
    first, second = columns.mul_(down[:, None])
    norm = (first * first).sum(dim=0).sqrt_()
    safe = torch.where(norm > 0, norm, 1.0)
    shared = (first * second).sum(dim=0) / safe
    second.addcmul_(first, (shared / safe)[None], value=-1.0)
    left = torch.hypot(second.mul_(second).sum(dim=0).sqrt_(), apart * down[1])
    triangle = torch.stack([norm, shared, torch.zeros_like(norm), left], dim=1).view(-1, 2, 2)
    _write_scaled(triangle, up.t()[:, None], out)


def _scales(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two that bring the largest elements near 1, and their reciprocals.

    QR commutes with them exactly, and afterwards neither squares nor norms overflow.
    """
    exponent = torch.frexp(largest).exponent.clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return _power_of_two(-exponent), _power_of_two(exponent)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Exactly, from the bits of a float64: `torch.ldexp` and `torch.exp2` do not promise that."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _write_scaled(triangle: Tensor, up: Tensor, out: Tensor) -> None:
    """Undo the scales; hold what overflows at the largest number, and write no negative zeros."""
    limit = torch.finfo(out.dtype).max
    torch.clamp(triangle.mul_(up), -limit, limit, out=out).add_(0.0)
