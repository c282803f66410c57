"""How wrong a displacement is expected to be, before anybody knows the truth; and which candidate to believe.

Two things are known: how wrong the operator was on the held-out end of the window (`backtest`), and how far what it
says now differs from what the operator of h strides ago says from the same start (the *spread*). The first one speaks
of the horizons that were tested; the second one of the horizon that is asked for. So the back-test answers alone as far
as it reaches, and beyond that hands over to the spread, by a geometric mean whose weights move with the horizon.

The constants were fitted on half of the training runs in ``tests/bench/calibration`` and checked on the other half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from koopcast_server.koopman.settings import Candidate

__all__ = ["at_stride", "least_error", "predicted_error", "spread_of"]

_HANDOVER = 0.5
"""The back-test's weight falls like this power of (its reach / horizon)."""
_SPREAD_GROWTH = 0.5
"""The error is the spread times this power of (horizon / the back-test's reach) …"""
_SPREAD_SHARE = 1.4
"""… and times this: the operator of now is wrong in much the same way as the one of h strides ago."""
_DISAGREEMENT = 6.0
"""Operators whose answers differ by more than so many times the shorter one explode: then that is the error."""
_RESOLUTION = 1e-7
"""Errors below it are not told from none (`backtest`)."""
_CORRECTION_HANDICAP = 1.5
"""A correction for noise must beat plain least squares by this factor in the back-test: they win it by chance, too, and
then cost more than they gain."""


def at_stride(errors: Tensor, strides: float) -> Tensor:
    """(…, B) of (…, B, h): the error of the first stride at or beyond `strides`, the last one where none is; NaN: none."""
    if not errors.shape[-1]:
        return errors.new_full(errors.shape[:-1], torch.nan)
    return errors[..., min(max(1, math.ceil(strides)), errors.shape[-1]) - 1]


def least_error(errors: Tensor, candidates: Sequence[Candidate], strides: float) -> Tensor:
    """(B,) int64, each block's candidate with the least back-test error at that horizon; the first of equals.

    Corrections for noise count as half as wrong again.

    Args:
        errors: (C, B, h), of all candidates after 1 … h strides; h = 0 and NaN: not tested.
        candidates: C of them.
        strides: the horizon.
    """
    handicaps = [_CORRECTION_HANDICAP if candidate.debias != "none" else 1.0 for candidate in candidates]
    tested = at_stride(errors, strides) * errors.new_tensor(handicaps)[:, None]
    return torch.where(tested.isnan(), torch.inf, tested).argmin(dim=0)


def spread_of(now: Tensor, earlier: Tensor) -> Tensor:
    """(…,), |now - earlier| / the shorter one's length, of displacements (…, d); inf where only one of them moves.

    NaN where neither does. Relative to the shorter one, since only so it is large when either of them explodes.
    """
    apart: Tensor = torch.linalg.vector_norm(now - earlier, dim=-1)
    shorter = torch.minimum(torch.linalg.vector_norm(now, dim=-1), torch.linalg.vector_norm(earlier, dim=-1))
    return apart / shorter


def predicted_error(errors: Tensor, spread: Tensor, strides: float) -> Tensor:
    """Expected |predicted - true| / |true| of a displacement: the true one is as often larger as smaller.

    Up to the h strides that were tested it is the back-test's error. Beyond, with ``ρ = strides / h`` and the weight
    ``u = 1 - ρ^-½``, it is

        ``error^(1 - u) · (x / √(1 + x²))^u``  with  ``x = 1.4 ρ^½ spread``,

    so that it grows toward 1, the error of staying: answers that share nothing with the truth are not much longer than
    it, as long as nothing explodes. What explodes shows in the spread: a sixth of it is the least that is expected.

    Args:
        errors: (B, h), back-test errors after 1 … h strides.
        spread: (B,), how far the operators of now and of h strides ago disagree at that horizon (`spread_of`); where it
            is not finite, their answers share nothing.
        strides: the horizon.

    Returns:
        (B,); NaN where there was no back-test.
    """
    tested = at_stride(errors, strides)
    beyond = strides / max(1, errors.shape[-1])
    if beyond <= 1.0:
        return tested
    weight = 1.0 - beyond**-_HANDOVER
    scaled = (_SPREAD_SHARE * beyond**_SPREAD_GROWTH * spread).clamp(min=_RESOLUTION)
    share = torch.where(scaled.isfinite(), scaled / torch.hypot(scaled, torch.ones_like(scaled)), 1.0)
    mean = tested.clamp(min=_RESOLUTION) ** (1.0 - weight) * share**weight
    exploding = torch.where(spread.isfinite(), spread / _DISAGREEMENT, 0.0)
    return torch.maximum(mean, exploding)
