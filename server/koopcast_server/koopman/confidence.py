"""How wrong a displacement is expected to be, before anybody knows the truth.

Two things are known: how wrong the operator was on the held-out end of the window (`backtest`), and how far what it
says now differs from what the operator of h strides ago says from the same start (the *spread*). The first one speaks
of the horizons that were tested; the second one of the horizon that is asked for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["at_stride", "predicted_error"]

_GROWTH = 0.5
"""Beyond the back-test the error grows like this power of the horizon, at least."""


def at_stride(errors: Tensor, strides: float) -> Tensor:
    """(…, B) of (…, B, h): the error of the first stride at or beyond `strides`, the last one where none is; NaN: none."""
    if not errors.shape[-1]:
        return errors.new_full(errors.shape[:-1], torch.nan)
    return errors[..., min(max(1, math.ceil(strides)), errors.shape[-1]) - 1]


def predicted_error(errors: Tensor, spread: Tensor, strides: float) -> Tensor:
    """Expected |predicted - true| / |true| of a displacement.

    Args:
        errors: (B, h), back-test errors after 1 … h strides.
        spread: (B,), |now - earlier| / |now| of the displacements that both operators foretell; NaN: unknown.
        strides: the horizon.

    Returns:
        (B,); NaN where there was no back-test.
    """
    tested = at_stride(errors, strides)
    reach = errors.shape[-1]
    if not reach:
        return tested
    grown = tested * max(1.0, strides / reach) ** _GROWTH
    combined = (grown.square() + spread.square()).sqrt()
    return torch.where(spread.isnan(), grown, combined)
