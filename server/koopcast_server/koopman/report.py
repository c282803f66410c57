"""What is known of each block's operator, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from koopcast_server.koopman.backtest import Backtest
from koopcast_server.koopman.settings import BACKTESTED_DEBIASES, Candidate, Debias
from koopcast_server.koopman.spectrum import falling

__all__ = ["Report", "joined", "report_of"]

_NOTHING = complex(torch.nan, torch.nan)


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of each block's operator at one horizon. B blocks.

    Attributes:
        rank: (B,) int64; 0 where nothing moved or products are not finite.
        spectral_radius: (B,), before stabilisation, per stride; 0 for rank 0.
        residual: (B,), |Y - A X| / |Y| of the fit; NaN for rank 0.
        backtest_error: (B,), after `backtest_strides`, relative to persistence, which scores 1; NaN where there is
            none, inf where nothing truly moved though the operator says so.
        backtest_error_linear: (B,), likewise of linear extrapolation.
        backtest_errors: (B, backtest_strides), the operator's error after 1 … backtest_strides strides.
        backtest_strides: how far the back-test looked; 0: there was none.
        eigenvalues: (B, max rank) complex128, before stabilisation, by falling modulus, padded with NaN.
        predicted_error: (B,), |predicted - true| / |true| to expect at the horizon; NaN where there is no back-test.
        jump_scale: (B,), by how much the displacement was shortened to stay in the trust region; 1: not at all.
        backtest_length: (B,), how far the block truly went while it was back-tested, in weights; 0 without a back-test.
        jump_length: (B,), length of the displacement, in weights; not finite where that is not.
        ridge: (B,), in use.
        debias: (B,) int64, in use, as an index into `BACKTESTED_DEBIASES`.
        late_miss: (B,), how far from the truth the prediction of the longest back-tested horizon ended, after its first
            stride, in weights (`late_misses`); NaN without a back-test.
        late_length: (B,), how far the block truly went meanwhile, in weights; NaN likewise.
    """

    rank: Tensor
    spectral_radius: Tensor
    residual: Tensor
    backtest_error: Tensor
    backtest_error_linear: Tensor
    backtest_errors: Tensor
    backtest_strides: int
    eigenvalues: Tensor
    predicted_error: Tensor
    jump_scale: Tensor
    backtest_length: Tensor
    jump_length: Tensor
    ridge: Tensor
    debias: Tensor
    late_miss: Tensor
    late_length: Tensor

    def take(self, order: Tensor) -> Report:
        """The report of some of its blocks, in that order."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "backtest_strides"
        }
        taken = {name: value[order] for name, value in values.items()}
        return Report(backtest_strides=self.backtest_strides, **taken)

    def debias_names(self) -> list[Debias]:
        """The correction for noise of each block."""
        return [BACKTESTED_DEBIASES[index] for index in self.debias.tolist()]


def report_of(  # noqa: PLR0913  # one argument a measure
    *,
    rank: Tensor,
    residual: Tensor,
    radius: Tensor,
    values: Tensor,
    tested: Backtest,
    errors: Tensor,
    predicted_error: Tensor,
    jump_scale: Tensor,
    jump_length: Tensor,
    scale: Tensor,
    late: tuple[Tensor, Tensor],
    candidates: Sequence[Candidate],
    choice: Tensor,
) -> Report:
    """A report from the parts of an analysis, all of them of the chosen candidates."""
    ridges = torch.tensor([candidate.ridge for candidate in candidates], dtype=errors.dtype)
    debiases = torch.tensor([BACKTESTED_DEBIASES.index(candidate.debias) for candidate in candidates])
    nothing = errors.new_full(rank.shape, torch.nan)
    return Report(
        rank=rank,
        spectral_radius=radius,
        residual=torch.where(rank > 0, residual, torch.nan),
        backtest_error=errors[:, -1] if tested.strides else nothing,
        backtest_error_linear=tested.errors_linear[:, -1] if tested.strides else nothing,
        backtest_errors=errors,
        backtest_strides=tested.strides,
        eigenvalues=falling(values, rank),
        predicted_error=predicted_error,
        jump_scale=jump_scale,
        backtest_length=tested.moved_squared[:, -1].sqrt() * scale
        if tested.strides
        else torch.zeros_like(scale),
        jump_length=jump_length,
        ridge=ridges[choice],
        debias=debiases[choice],
        late_miss=late[0],
        late_length=late[1],
    )


def joined(reports: Sequence[Report]) -> Report:
    """One report of the blocks of all, in order; they share `backtest_strides`."""
    most = max(one.eigenvalues.shape[-1] for one in reports)
    eigenvalues = torch.full((sum(len(one.rank) for one in reports), most), _NOTHING, dtype=torch.complex128)
    first = 0
    for one in reports:
        eigenvalues[first : first + len(one.rank), : one.eigenvalues.shape[-1]] = one.eigenvalues
        first += len(one.rank)
    return Report(
        rank=torch.cat([one.rank for one in reports]),
        spectral_radius=torch.cat([one.spectral_radius for one in reports]),
        residual=torch.cat([one.residual for one in reports]),
        backtest_error=torch.cat([one.backtest_error for one in reports]),
        backtest_error_linear=torch.cat([one.backtest_error_linear for one in reports]),
        backtest_errors=torch.cat([one.backtest_errors for one in reports]),
        backtest_strides=reports[0].backtest_strides,
        eigenvalues=eigenvalues,
        predicted_error=torch.cat([one.predicted_error for one in reports]),
        jump_scale=torch.cat([one.jump_scale for one in reports]),
        backtest_length=torch.cat([one.backtest_length for one in reports]),
        jump_length=torch.cat([one.jump_length for one in reports]),
        ridge=torch.cat([one.ridge for one in reports]),
        debias=torch.cat([one.debias for one in reports]),
        late_miss=torch.cat([one.late_miss for one in reports]),
        late_length=torch.cat([one.late_length for one in reports]),
    )
