"""Linear extrapolation of every weight."""

from __future__ import annotations

import torch
from torch import Tensor

from acceleration.methods.masks import masked
from acceleration.methods.probed import ProbedJumps
from acceleration.methods.running import Start

__all__ = ["along_line", "along_masked_line", "linear", "linear_mask"]


def along_line(snapshots: Tensor, strides: int) -> Tensor:
    """Displacement (n) along the least-squares lines through (window, n), so many strides on."""
    times = torch.arange(len(snapshots), dtype=snapshots.dtype)
    times -= times.mean()
    slopes = (times / times.square().sum()) @ (snapshots - snapshots[-1])
    return slopes * strides


def along_masked_line(snapshots: Tensor, strides: int) -> Tensor:
    """The same, of the weights that pass `masked` only, by what the last stride changed."""
    return masked(along_line(snapshots, strides), snapshots[-1] - snapshots[-2], strides)


def linear(start: Start) -> ProbedJumps:
    """The line of every weight, as far as the probe likes: the linear fit that Weight Nowcaster compares with.

    Jang, Yun, Han & Jung, "Learning to boost training by periodic nowcasting near future weights", ICML 2023. Window,
    stride, horizons and probe are those of koopcast's hook (`acceleration.methods.probed`).
    """
    return ProbedJumps(start, along_line)


def linear_mask(start: Start) -> ProbedJumps:
    """`linear` with the mask of Predictive Differential Training (`acceleration.methods.masks`)."""
    return ProbedJumps(start, along_masked_line)
