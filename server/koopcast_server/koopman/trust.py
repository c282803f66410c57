"""How far to trust a prediction: the bound on a jump, the horizon that learns.

The mask of single weights, which looks at each of them, is in `koopcast.window.mask`.

None of these makes a prediction better; they make a wrong one cost less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Self

import torch
from torch import Tensor

__all__ = ["TrustedHorizon", "bound_displacement"]

_FIRST_STRIDES: Final = 4.0
_FARTHEST_STRIDES: Final = 256.0
_SEARCHING_GROWTH: Final = 2.0
_SETTLED_GROWTH: Final = 1.25
_SHRINK: Final = 0.5


def bound_displacement(length: Tensor, path_length: Tensor, max_jump: float | None) -> Tensor:
    """By what to multiply each block's displacement so that it is at most `max_jump` times its recent path.

    The trust region of a block: a prediction is good near what it was fitted to, and its radius is measured in what
    the window saw, not in weights.

    Args:
        length: (B,) lengths of the displacements.
        path_length: (B,) sums of the lengths of the velocities in the window.
        max_jump: the bound, > 0; None for none.

    Returns:
        (B,) in 0..1, finite: 1 where the displacement is short enough or there is no bound, 0 where the block did not
        move or a length is not finite.

    Raises:
        ValueError: a bound that is not > 0.
    """
    if max_jump is None:
        return torch.ones_like(length)
    if not max_jump > 0:
        raise ValueError(f"the bound on a jump must be > 0, not {max_jump}")
    limit = path_length * max_jump
    usable = length.isfinite() & path_length.isfinite() & (path_length > 0)
    within = length <= limit
    scale = limit / torch.where(within | ~usable, 1.0, length)
    scale = torch.where(
        scale >= torch.finfo(scale.dtype).tiny, scale, 0.0
    )  # below it digits are lost, so the bound too
    return torch.where(usable, torch.where(within, 1.0, scale), 0.0)


@dataclass(frozen=True, slots=True)
class TrustedHorizon:
    """How far ahead a job's predictions are trusted, learned from what became of its jumps.

    A trust region in time (Conn, Gould & Toint, *Trust-Region Methods*, 2000, chapter 6): the region follows the steps
    that were really tried, not its own size. There, the ratio of the actual to the predicted decrease judges a step;
    here no decrease is predicted, so a jump is either accepted or rejected.

    - A jump accepted at horizon h is evidence for h, whatever was trusted before: trust becomes at least g h. While no
      jump was rejected yet, the scale is being searched, and g is 2; from then on g is 1.25. An accepted jump well
      inside the region leaves it as it is.
    - A jump rejected at h brings trust down to h / 2 at most. One rejected at twice the trusted horizon or farther
      says nothing about the trusted one, and changes nothing.

    After the first rejection it takes about three accepted jumps at the edge to make up for one rejected there, so trust
    settles where about three in four are accepted.

    Attributes:
        stride: trainer steps between snapshots: the least horizon.
        steps: the trusted horizon, between 1 and 256 strides. Unit: trainer steps.
        searching: whether no jump was rejected within reach yet.
    """

    stride: int
    steps: float
    searching: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no stride, and horizons out of bounds."""
        if self.stride < 1:
            raise ValueError(f"the stride must be at least 1 step, not {self.stride}")
        if not self.stride <= self.steps <= self.farthest:
            raise ValueError(f"the horizon must lie in {self.stride}..{self.farthest:g}, not {self.steps}")

    @classmethod
    def initial(cls, stride: int) -> Self:
        """Before any outcome: 4 strides."""
        return cls(stride, _FIRST_STRIDES * stride)

    @property
    def farthest(self) -> float:
        """Trust never goes beyond: 256 strides. Unit: trainer steps."""
        return _FARTHEST_STRIDES * self.stride

    def after(self, horizon_steps: float, *, accepted: bool) -> Self:
        """Trust after a jump of that horizon.

        Raises:
            ValueError: the horizon is not finite and > 0.
        """
        if not (math.isfinite(horizon_steps) and horizon_steps > 0):
            raise ValueError(f"the horizon must be finite and > 0 steps, not {horizon_steps}")
        if accepted:
            growth = _SEARCHING_GROWTH if self.searching else _SETTLED_GROWTH
            return replace(self, steps=min(self.farthest, max(self.steps, growth * horizon_steps)))
        reached = _SHRINK * horizon_steps
        if reached >= self.steps:
            return self
        return replace(self, steps=max(float(self.stride), reached), searching=False)
