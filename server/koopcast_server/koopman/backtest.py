"""How well the operator would have done: fit on the older part of the window, predict the newer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.gram import Observed
from koopcast_server.koopman.propagate import each_stride
from koopcast_server.koopman.reduced import fit
from koopcast_server.koopman.settings import OperatorSettings
from koopcast_server.koopman.spectrum import decompose

__all__ = ["Backtest", "backtest"]

_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class Backtest:
    """Scores |predicted - true| / |true| displacement; staying scores 1. NaN where there is no score.

    They come off the Gram, so that an error below about 1e-7 is not told from none.

    Attributes:
        strides: h, strides held out; 0 where the window is too short.
        error: (B,), of the operator, h strides ahead.
        error_linear: (B,), of the better of the last and the mean velocity carried on.
        errors: (B, h), of the operator after 1 … h strides.
    """

    strides: int
    error: Tensor
    error_linear: Tensor
    errors: Tensor


def backtest(observed: Observed, settings: OperatorSettings) -> Backtest:
    """Hold out the last ``h = max(1, M // 3)`` of M velocities and predict them from the others."""
    velocities = observed.frame.shape[-1] - 1
    held_out = max(1, velocities // 3)
    fitted = observed.count - held_out
    if fitted < 2:
        nothing = observed.frame.new_full((observed.frame.shape[0],), torch.nan)
        return Backtest(0, nothing, nothing, nothing[:, None][:, :0])
    truth = _carried(velocities, velocities - held_out, held_out, observed.frame)
    predicted = _predicted(observed, fitted, held_out, settings)
    errors = _scores(observed.frame, predicted, truth)
    errors = torch.where(observed.usable[:, None], errors, torch.nan)
    known = velocities - held_out
    steps = torch.arange(1, held_out + 1, dtype=truth.dtype)[:, None]
    last, mean = torch.zeros_like(truth), torch.zeros_like(truth)
    if known:
        last[:, known - 1 : known] = steps
        mean[:, :known] = steps / known
    linear = torch.minimum(
        _scores(observed.frame, last[None, -1:], truth[-1:]),
        _scores(observed.frame, mean[None, -1:], truth[-1:]),
    ).squeeze(-1)
    linear = torch.where(observed.usable, linear, torch.nan)
    return Backtest(held_out, errors[:, -1], linear, errors)


def _predicted(observed: Observed, fitted: int, strides: int, settings: OperatorSettings) -> Tensor:
    """(B, strides, M + 1): predicted displacements in frame coordinates."""
    earlier = fit(observed.gram[:, :fitted, :fitted], observed.noise, observed.snapshots(fitted), settings)
    operator, _, _ = decompose(earlier.operator, stable=settings.stabilize)
    amplitudes = each_stride(operator, earlier.start, strides, observed.observable)
    return (earlier.modes @ amplitudes).mT @ observed.lift[: fitted - 1]


def _carried(velocities: int, start: int, count: int, like: Tensor) -> Tensor:
    """(count, M + 1): sums of the next 1 … count velocities after `start`."""
    truth = like.new_zeros((count, velocities + 1))
    truth[:, start : start + count] = torch.ones((count, count), dtype=like.dtype).tril()
    return truth


def _scores(frame: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """(B, h) of sqrt((c - t)ᵀ G (c - t) / tᵀ G t); where nothing truly moved: 1 for c = 0, else inf."""

    def squared(coordinates: Tensor) -> Tensor:
        return ((coordinates @ frame) * coordinates).sum(dim=-1).clamp(min=0.0)

    wrong, moved = squared(predicted - truth), squared(truth.expand(len(frame), -1, -1))
    speed = frame.diagonal(dim1=-2, dim2=-1)[:, :-1].amax(dim=-1, keepdim=True)
    ratio = torch.where(moved > _ROUNDING * speed, (wrong / moved).sqrt(), torch.inf)
    ratio = torch.where((predicted == 0).all(dim=-1), 1.0, ratio)
    return torch.where(ratio.isnan(), torch.inf, ratio)
