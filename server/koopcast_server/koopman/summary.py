"""All blocks of a job taken together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.predictability import predictability
from koopcast_server.koopman.report import Report

__all__ = ["Totals", "totals"]


@dataclass(frozen=True, slots=True)
class Totals:
    """What B blocks come to.

    Attributes:
        blocks: B.
        moved: blocks that are moved.
        untrusted: moved blocks whose back-test is missing at the horizon, or no better than staying or than linear
            extrapolation.
        spectral_radius: the largest, per stride.
        backtest_error: the root of the summed squared errors over the summed squared displacements of all blocks that
            have a finite score; NaN where none has.
        backtest_error_linear: the same of linear extrapolation.
        predicted_error: the same of the errors predicted for the blocks that are moved.
        predictability: share of the squared displacement that was foretold in the back-test, as `predictability` has it;
            None without a back-test.
    """

    blocks: int
    moved: int
    untrusted: int
    spectral_radius: float
    backtest_error: float
    backtest_error_linear: float
    predicted_error: float
    predictability: float | None


def totals(report: Report, moved: Tensor, *, extrapolated: bool) -> Totals:
    """Totals of all blocks.

    Args:
        report: of the blocks, at one horizon.
        moved: (B,) bool.
        extrapolated: whether the horizon lies beyond the back-test.
    """
    beaten = (report.backtest_error < 1.0) & (report.backtest_error < report.backtest_error_linear)
    untrusted = moved if extrapolated else moved & ~beaten
    return Totals(
        blocks=len(moved),
        moved=int(moved.sum()),
        untrusted=int(untrusted.sum()),
        spectral_radius=float(report.spectral_radius.amax()),
        backtest_error=_together(report.backtest_error, report.backtest_length),
        backtest_error_linear=_together(report.backtest_error_linear, report.backtest_length),
        predicted_error=_together(report.predicted_error, torch.where(moved, report.jump_length, 0.0)),
        predictability=predictability(report.late_miss, report.late_length),
    )


def _together(errors: Tensor, lengths: Tensor) -> float:
    """Relative errors of vectors of these lengths, as the relative error of them all."""
    counted = errors.isfinite() & lengths.isfinite() & (lengths > 0)
    if not counted.any():
        return float("nan")
    shares = lengths[counted] / lengths[counted].amax()  # squares of lengths might overflow
    weights = shares.square()
    return float(((errors[counted] * shares).square().sum() / weights.sum()).sqrt())
