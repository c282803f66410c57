"""Gram matrices in, coefficients out: the whole operator side of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.backtest import Backtest, backtest
from koopcast_server.koopman.gram import Observed, Products, observe
from koopcast_server.koopman.propagate import advance
from koopcast_server.koopman.reduced import Fit, fit
from koopcast_server.koopman.settings import OperatorSettings
from koopcast_server.koopman.spectrum import Spectrum, decompose, falling

__all__ = ["PredictionBatch", "Report", "predict", "report"]

_FARTHEST = 1e30
"""A displacement longer than this many of the window's longest vectors is no answer."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of each block's operator. B blocks.

    Attributes:
        rank: (B,) int64; 0 where nothing moved or products are not finite.
        spectral_radius: (B,), before stabilisation, per stride; 0 for rank 0.
        residual: (B,), |Y - A X| / |Y| of the fit; NaN for rank 0.
        backtest_error: (B,), relative to persistence, which scores 1; NaN where there is none, inf where
            nothing truly moved though the operator says so.
        backtest_error_linear: (B,), likewise of linear extrapolation.
        backtest_errors: (B, backtest_strides), the operator's error after 1 … backtest_strides strides.
        backtest_strides: how far the back-test looked; 0: there was none.
        eigenvalues: (B, max rank) complex128, before stabilisation, by falling modulus, padded with NaN.
    """

    rank: Tensor
    spectral_radius: Tensor
    residual: Tensor
    backtest_error: Tensor
    backtest_error_linear: Tensor
    backtest_errors: Tensor
    backtest_strides: int
    eigenvalues: Tensor


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """Displacements as combinations of what a window holds. H horizons, B blocks, M velocities oldest first.

    Attributes:
        velocity_coefficients: (H, B, M) float64, finite; zero for blocks that decline.
        last_coefficients: (H, B) float64, on the last snapshot; zero for the velocity observable.
        moved: (H, B) bool; False where a block declines.
        report: one for all horizons.
    """

    velocity_coefficients: Tensor
    last_coefficients: Tensor
    moved: Tensor
    report: Report


def predict(
    products: Products, settings: OperatorSettings, horizons: Sequence[float], offset: float = 0.0
) -> PredictionBatch:
    """Fit once and say where the weights go: ``ŵ(offset + horizon) - ŵ(offset)`` for each horizon.

    A block declines (coefficients exactly zero) where nothing moved, where the back-test is no better than
    staying, and where the answer is not finite.

    Args:
        products: of the window.
        settings: of the operator.
        horizons: how far ahead of `offset`, each finite and > 0. Unit: strides.
        offset: where the displacement starts, >= 0, counted from the last snapshot. Unit: strides.

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state.
        ValueError: for a horizon or an offset that is none.
    """
    if not all(math.isfinite(tau) and tau > 0 for tau in horizons):
        raise ValueError(f"horizons must be finite and > 0: {list(horizons)}")
    if not (math.isfinite(offset) and offset >= 0):
        raise ValueError(f"the offset must be finite and >= 0, not {offset}")
    observed, fitted, tested, summary, operator, spectrum = _analyse(products, settings)
    ends = [offset, *(offset + tau for tau in horizons)]
    reached = advance(operator, spectrum, fitted.start, ends, settings.observable)
    change = reached[:, :, 1:] - reached[:, :, :1]
    coordinates = ((fitted.modes @ change).mT @ observed.lift[:-1]).transpose(0, 1)  # (H, B, M + 1)
    moved = _sane(observed, coordinates) & (fitted.rank > 0) & ~(tested.error >= 1.0)
    coordinates = torch.where(moved[:, :, None], coordinates, 0.0)
    return PredictionBatch(
        coordinates[:, :, :-1].contiguous(), coordinates[:, :, -1].contiguous(), moved, summary
    )


def report(products: Products, settings: OperatorSettings) -> Report:
    """What `predict` would report, without predicting.

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state.
    """
    return _analyse(products, settings)[3]


def _analyse(
    products: Products, settings: OperatorSettings
) -> tuple[Observed, Fit, Backtest, Report, Tensor, Spectrum]:
    """Fit, back-test and spectrum; the last two are the operator in use and its spectrum."""
    observed = observe(products, settings.observable)
    fitted = fit(observed.gram, observed.noise, observed.snapshots(observed.count), settings)
    operator, spectrum, before = decompose(fitted.operator, stable=settings.stabilize)
    tested = backtest(observed, settings)
    summary = Report(
        rank=fitted.rank,
        spectral_radius=before.radius,
        residual=torch.where(fitted.rank > 0, fitted.residual, torch.nan),
        backtest_error=tested.error,
        backtest_error_linear=tested.error_linear,
        backtest_errors=tested.errors,
        backtest_strides=tested.strides,
        eigenvalues=falling(before.values, fitted.rank),
    )
    return observed, fitted, tested, summary, operator, spectrum


def _sane(observed: Observed, coordinates: Tensor) -> Tensor:
    """(H, B) bool: finite, and the displacement is not absurdly longer than what was seen."""
    length = ((coordinates.unsqueeze(-2) @ observed.frame).squeeze(-2) * coordinates).sum(dim=-1)
    return coordinates.isfinite().all(dim=-1) & (length < _FARTHEST**2)
