"""How well each candidate would have done: fit on the older part of the window, predict the newer.

Everything is in coordinates, so that ranking a hundred candidates touches no array as long as the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.pairs import Fold, Problem
from koopcast_server.koopman.propagate import each_stride
from koopcast_server.koopman.reduced import Fit, fit
from koopcast_server.koopman.settings import Candidate, OperatorSettings
from koopcast_server.koopman.spectrum import Spectrum, decompose, stabilized

__all__ = ["Backtest", "EarlierOperator", "backtest"]

_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class EarlierOperator:
    """The operators of the oldest fold, (C B, …): what would have been said h strides ago.

    Attributes:
        fitted: the fit, (C, B, …).
        operator: (C B, r, r), made stable where asked.
        spectrum: of that operator; None where nobody needs it.
    """

    fitted: Fit
    operator: Tensor
    spectrum: Spectrum | None


@dataclass(frozen=True, slots=True)
class Backtest:
    """Scores |predicted - true| / |true| displacement; staying scores 1. NaN where there is no score.

    They come off the Gram, so that an error below about 1e-7 is not told from none.

    Attributes:
        strides: h, strides held out; 0 where the window is too short.
        errors: (C, B, h), of each candidate after 1 … h strides, all folds together: the root of the summed squared
            errors over the summed squared displacements.
        errors_linear: (B, h), of linear extrapolation: at each stride the better of the last and the mean velocity.
        moved_squared: (B, h), the summed squared displacements, in coordinates.
        late_squared: (B,), the same of what the displacements gain after the first stride, up to the last one that each
            fold holds out; where only one stride is held out at all, of that one.
        late_wrong_squared: (C, B), the summed squared errors of these.
        earlier: the oldest fold's operators; None where there is no fold.
    """

    strides: int
    errors: Tensor
    errors_linear: Tensor
    moved_squared: Tensor
    late_squared: Tensor
    late_wrong_squared: Tensor
    earlier: EarlierOperator | None


def backtest(
    problem: Problem, candidates: Sequence[Candidate], settings: OperatorSettings, *, functions: bool
) -> Backtest:
    """Score the candidates on all folds; a fold of fewer held-out strides counts for these.

    With `functions`, the oldest fold's operators come with what broken strides need.
    """
    blocks = problem.usable.shape[0]
    if not problem.folds:
        nothing = problem.noise.new_full((blocks, 0), torch.nan)
        none = problem.noise.new_zeros((len(candidates), blocks))
        return Backtest(0, none[:, :, None][:, :, :0], nothing, nothing, none[0], none, None)
    strides = problem.folds[0].truth.shape[-1]
    wrong = problem.noise.new_zeros((len(candidates), blocks, strides))
    last, mean, moved, speed = (torch.zeros_like(wrong[0]) for _ in range(4))
    late, late_wrong = torch.zeros_like(moved[:, 0]), torch.zeros_like(wrong[..., 0])
    still = torch.ones_like(wrong, dtype=torch.bool)
    operators = [
        _earlier(fold, problem, candidates, settings, functions=functions and fold is problem.folds[0])
        for fold in problem.folds
    ]
    for fold, earlier in zip(problem.folds, operators, strict=True):
        reach = fold.truth.shape[-1]
        predicted = _predicted(fold, earlier, settings)
        wrong[..., :reach] += (predicted - fold.truth).square().sum(dim=-2)
        still[..., :reach] &= (predicted == 0).all(dim=-2)
        moved[:, :reach] += fold.truth.square().sum(dim=-2)
        late_truth = _late(fold.truth, strides)
        late += late_truth.square().sum(dim=-1)
        late_wrong += (_late(predicted, strides) - late_truth).square().sum(dim=-1)
        ahead = torch.arange(1, reach + 1, dtype=wrong.dtype)
        last[:, :reach] += (fold.last_step[:, :, None] * ahead - fold.truth).square().sum(dim=-2)
        mean[:, :reach] += (fold.mean_step[:, :, None] * ahead - fold.truth).square().sum(dim=-2)
        longest = fold.truth.diff(dim=-1, prepend=torch.zeros_like(fold.truth[..., :1])).square().sum(dim=-2)
        speed = torch.maximum(speed, longest.amax(dim=-1, keepdim=True))
    errors = torch.where(still, 1.0, _ratio(wrong, moved, speed))
    linear = _ratio(torch.minimum(last, mean), moved, speed)
    usable = problem.usable[:, None]
    return Backtest(
        strides,
        torch.where(usable, errors, torch.nan),
        torch.where(usable, linear, torch.nan),
        torch.where(usable, moved, 0.0),
        torch.where(problem.usable, late, 0.0),
        torch.where(problem.usable, late_wrong, 0.0),
        operators[0],
    )


def _earlier(
    fold: Fold,
    problem: Problem,
    candidates: Sequence[Candidate],
    settings: OperatorSettings,
    *,
    functions: bool,
) -> EarlierOperator:
    fitted = fit(fold.pairs, problem, candidates, settings)
    operator, spectrum = fitted.operator.flatten(0, 1), None
    if functions:
        operator, spectrum, _ = decompose(operator, stable=settings.stabilize)
    elif settings.stabilize:
        operator = stabilized(operator)
    return EarlierOperator(fitted, operator, spectrum)


def _predicted(fold: Fold, earlier: EarlierOperator, settings: OperatorSettings) -> Tensor:
    """(C, B, d, h) displacements."""
    fitted = earlier.fitted
    reach = fold.truth.shape[-1]
    amplitudes = each_stride(earlier.operator, fitted.start.flatten(0, 1), reach, settings.observable)
    modes = fitted.modes[:, :, : fold.pairs.readout]
    return modes @ amplitudes.reshape(*fitted.start.shape, reach)


def _late(displacement: Tensor, strides: int) -> Tensor:
    """(…, d) of (…, d, reach): from the first stride to the last; of a back-test of a single one, that one."""
    end = displacement[..., -1]
    return end if strides == 1 else end - displacement[..., 0]


def _ratio(wrong: Tensor, moved: Tensor, speed: Tensor) -> Tensor:
    """Root of the quotient; inf where nothing truly moved, and where the prediction is not finite."""
    ratio = torch.where(moved > _ROUNDING * speed, (wrong / moved).sqrt(), torch.inf)
    return torch.where(ratio.isnan(), torch.inf, ratio)
