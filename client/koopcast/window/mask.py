"""The mask of single weights (Predictive Differential Training, ICLR 2026): of a jump, keep what goes on as it went.

It looks at every weight, and so is made where the window is.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import torch
from torch import Tensor

__all__ = ["mask_by_last_change_", "mask_displacement", "mask_displacement_"]

_PIECE: Final = 1 << 18
"""Elements masked at a time: the memory beside the displacement stays below 16 MiB whatever its length."""


class HasLastChange(Protocol):
    """A window, of either kind."""

    def read_last_velocity(self, start: int, stop: int) -> Tensor:
        """(stop - start,) the last change of elements ``start:stop``, as stored."""


def mask_displacement(
    displacement: Tensor, last_change: Tensor, tolerance: float, strides: float = 1.0
) -> Tensor:
    """A copy of `displacement` that keeps only the weights which go on as they went: see `mask_displacement_`."""
    return mask_displacement_(displacement.clone(), last_change, tolerance, strides)


def mask_displacement_(
    displacement: Tensor, last_change: Tensor, tolerance: float, strides: float = 1.0
) -> Tensor:
    """Sets to zero, in place, the jump of every weight that does not go on as it went.

    The mask of Predictive Differential Training (ICLR 2026): with d the weight's last observed change, its jump is
    kept if the signs agree and ``|d| <= |jump| <= (tolerance + 1) |d|``. That rule knows no horizon: a good jump of
    many strides is longer than ``(tolerance + 1) |d|`` and would be lost. With `strides` the rule becomes

        ``min(1, strides) |d| <= |jump| <= (tolerance + 1) strides |d|``

    which is the paper's at 1. The upper bound grows with the horizon, since a weight may go so many times as far; the
    lower one does not, since weights slow down as they converge, and a jump of k strides by far less than k d is what
    a decaying mode looks like. What falls below even one stride's change has turned round.

    Args:
        displacement: any shape, floating point, any device. Contiguous.
        last_change: same shape, dtype and device: what the last observed stride moved.
        tolerance: τ >= 0 of the paper.
        strides: the horizon, > 0. Unit: strides. 1 is the paper's rule.

    Returns:
        `displacement`. What is not finite in either tensor is set to zero.

    Raises:
        ValueError: a tolerance that is not finite and >= 0, a horizon that is not finite and > 0, other shapes,
            dtypes or devices, or a displacement that is not contiguous.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"the tolerance must be finite and >= 0, not {tolerance}")
    if not (math.isfinite(strides) and strides > 0):
        raise ValueError(f"the horizon must be finite and > 0 strides, not {strides}")
    kinds = [(one.shape, one.dtype, one.device) for one in (displacement, last_change)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"displacement and last change differ: {kinds[0]} and {kinds[1]}")
    if not displacement.is_contiguous():
        raise ValueError("the displacement must be contiguous")
    jumps, changes = displacement.view(-1), last_change.reshape(-1)
    for jump, change in zip(torch.split(jumps, _PIECE), torch.split(changes, _PIECE), strict=True):
        jump.masked_fill_(~_goes_on(jump, change, min(1.0, strides), (tolerance + 1.0) * strides), 0.0)
    return displacement


def _goes_on(jump: Tensor, change: Tensor, least: float, most: float) -> Tensor:
    """Bool: same sign, and least |change| <= |jump| <= most |change|; halves are compared in float32."""
    wide = torch.float32 if jump.dtype in (torch.float16, torch.bfloat16) else jump.dtype
    size, moved = jump.to(wide).abs(), change.to(wide).abs()
    agreed = jump.sign() * change.sign() > 0  # false for NaN and for a change of zero
    return agreed & size.isfinite() & moved.isfinite() & (moved * least <= size) & (size <= moved * most)


def mask_by_last_change_(
    displacement: Tensor, window: HasLastChange, tolerance: float, strides: float
) -> Tensor:
    """`mask_displacement_` of a whole flat displacement by the last change in its window, in place."""
    for start in range(0, len(displacement), _PIECE):
        some = displacement[start : start + _PIECE]
        change = window.read_last_velocity(start, start + len(some)).to(displacement.dtype)
        mask_displacement_(some, change, tolerance, strides)
    return displacement
