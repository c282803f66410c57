"""A window in, answers out: the whole operator side of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.backtest import Backtest, backtest
from koopcast_server.koopman.clock import Resampling
from koopcast_server.koopman.confidence import at_stride, least_error, predicted_error, spread_of
from koopcast_server.koopman.modes import Modes, modes_of
from koopcast_server.koopman.pairs import Problem, from_trajectory
from koopcast_server.koopman.predictability import late_misses
from koopcast_server.koopman.propagate import advance
from koopcast_server.koopman.reduced import Fit, fit
from koopcast_server.koopman.report import Report, report_of
from koopcast_server.koopman.settings import Candidate, OperatorSettings
from koopcast_server.koopman.spectrum import Spectrum, decompose
from koopcast_server.koopman.streamed import Streamed, from_streamed
from koopcast_server.koopman.trajectory import Products, Vectors, from_products, from_vectors
from koopcast_server.koopman.trust import bound_displacement

__all__ = ["PredictionBatch", "Source", "predict", "report"]

Source = Products | Vectors | Streamed
"""What a window can tell: its Gram, its vectors, or the R factor of all its pairs."""

_FARTHEST = 1e30
"""A displacement longer than this many of the window's longest steps is no answer."""


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """Displacements of B blocks at H horizons.

    Attributes:
        velocity_coefficients: (H, B, M) float64, finite; zero for blocks that decline. M = 0 with a `displacement`.
        last_coefficients: (H, B) float64, on the last snapshot; zero for the velocity observable.
        displacement: (H, B, s) float64 itself, where the source was `Vectors` or `Streamed`; else None.
        moved: (H, B) bool; False where a block declines.
        reports: one for each horizon.
    """

    velocity_coefficients: Tensor
    last_coefficients: Tensor
    displacement: Tensor | None
    moved: Tensor
    reports: tuple[Report, ...]

    @property
    def report(self) -> Report:
        """Of the first horizon."""
        return self.reports[0]


@dataclass(frozen=True, slots=True)
class _Analysis:
    """Fits of all candidates, their spectra and scores; leading dimension C B where it is not (C, B)."""

    problem: Problem
    candidates: tuple[Candidate, ...]
    fitted: Fit
    operator: Tensor
    spectrum: Spectrum
    before: Spectrum
    tested: Backtest


def predict(
    source: Source,
    settings: OperatorSettings,
    horizons: Sequence[float],
    offset: float = 0.0,
    resampling: Resampling | None = None,
) -> PredictionBatch:
    """Fit once and say where the weights go: ``ŵ(offset + horizon) - ŵ(offset)`` for each horizon.

    Where candidates compete, each block takes the one that the back-test liked best at that horizon. A block declines
    (its displacement is exactly zero) where nothing moved, where the back-test is no better than staying
    (unless `always_move`), and where the answer is not finite.

    Args:
        source: what the window tells.
        settings: of the operator.
        horizons: how far ahead of `offset`, each finite and > 0. Unit: strides.
        offset: where the displacement starts, >= 0, counted from the last snapshot. Unit: strides.
        resampling: to a uniform clock; horizons and offset are then in strides of that clock.

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state, one more for each delay.
        ValueError: for a horizon or an offset that is none.
    """
    if not all(math.isfinite(tau) and tau > 0 for tau in horizons):
        raise ValueError(f"horizons must be finite and > 0: {list(horizons)}")
    if not (math.isfinite(offset) and offset >= 0):
        raise ValueError(f"the offset must be finite and >= 0, not {offset}")
    broken = any(not float(end).is_integer() for end in (offset, *(offset + tau for tau in horizons)))
    analysis = _analyse(_problem(source, settings, resampling), settings, functions=broken)
    choices = torch.stack([_choice(analysis, offset + tau) for tau in horizons])
    now = _displacements(
        analysis, analysis.fitted, analysis.operator, analysis.spectrum, choices, horizons, offset
    )
    spread = _spread(analysis, now, choices, horizons, offset)
    answers, moved, reports = [], [], []
    for index, tau in enumerate(horizons):
        displacement, scale = _bounded(analysis.problem, now[index], settings)
        moves = _moves(analysis, choices[index], displacement, offset + tau, settings)
        answers.append(torch.where(moves[:, None], displacement, 0.0))
        moved.append(moves)
        error = predicted_error(_chosen(analysis.tested.errors, choices[index]), spread[index], offset + tau)
        reports.append(_report(analysis, choices[index], error, scale, displacement, settings))
    return _batch(analysis.problem, torch.stack(answers), torch.stack(moved), tuple(reports))


def report(
    source: Source, settings: OperatorSettings, strides: float = 1.0, resampling: Resampling | None = None
) -> tuple[Report, Modes]:
    """What `predict` would report, and the modes, without predicting.

    Args:
        source: what the window tells.
        settings: of the operator.
        strides: the horizon at which candidates are chosen and the error is predicted. Unit: strides.
        resampling: as in `predict`.

    Raises:
        TooFewSnapshotsError: as `predict`.
    """
    functions = not float(strides).is_integer()
    analysis = _analyse(_problem(source, settings, resampling), settings, functions=functions)
    choice = _choice(analysis, strides)
    choices = choice[None]
    now = _displacements(
        analysis, analysis.fitted, analysis.operator, analysis.spectrum, choices, [strides], 0.0
    )
    spread = _spread(analysis, now, choices, [strides], 0.0)[0]
    error = predicted_error(_chosen(analysis.tested.errors, choice), spread, strides)
    displacement, scale = _bounded(analysis.problem, now[0], settings)
    found = _report(analysis, choice, error, scale, displacement, settings)
    fitted = analysis.fitted
    modes = modes_of(
        analysis.problem.pairs,
        _chosen(fitted.modes, choice),
        _chosen(fitted.operator, choice),
        _chosen(fitted.rank, choice),
    )
    return found, modes


def _batch(problem: Problem, answers: Tensor, moved: Tensor, reports: tuple[Report, ...]) -> PredictionBatch:
    """Displacements (H, B, d) in coordinates, as what the window can combine or as they are."""
    if problem.lift is None:
        displacement = answers * problem.scale[:, None]
        nothing = displacement[:, :, :0]
        return PredictionBatch(nothing, nothing.sum(dim=-1), displacement, moved, reports)
    velocities, last = problem.lift(answers)
    return PredictionBatch(velocities, last, None, moved, reports)


def _problem(source: Source, settings: OperatorSettings, resampling: Resampling | None) -> Problem:
    if isinstance(source, Streamed):
        if resampling is not None:
            raise ValueError("a whole segment cannot be resampled: its snapshots are not stored")
        return from_streamed(source, settings)
    make = from_products if isinstance(source, Products) else from_vectors
    return from_trajectory(make(source, settings.observable, resampling), settings)  # type: ignore[arg-type]  # one each


def _analyse(problem: Problem, settings: OperatorSettings, *, functions: bool) -> _Analysis:
    folds = problem.folds
    most = min([fold.pairs.columns for fold in folds] or [problem.pairs.columns])
    candidates = settings.candidates(most)
    fitted = fit(problem.pairs, problem, candidates, settings)
    operator, spectrum, before = decompose(
        fitted.operator.flatten(0, 1), stable=settings.stabilize, functions=functions
    )
    tested = backtest(problem, candidates, settings, functions=functions)
    return _Analysis(problem, candidates, fitted, operator, spectrum, before, tested)


def _choice(analysis: _Analysis, strides: float) -> Tensor:
    """(B,) number of the candidate that the back-test speaks for at that horizon."""
    return least_error(analysis.tested.errors, analysis.candidates, strides)


def _chosen(values: Tensor, choice: Tensor) -> Tensor:
    """(B, …) of (C, B, …): each block's chosen candidate."""
    return values[choice, torch.arange(values.shape[1])] if values.shape[0] > 1 else values[0]


def _displacements(
    analysis: _Analysis,
    fitted: Fit,
    operator: Tensor,
    spectrum: Spectrum | None,
    choices: Tensor,
    horizons: Sequence[float],
    offset: float,
) -> Tensor:
    """(H, B, d) displacements in coordinates, by the chosen candidates of a fit, from the window's last vector."""
    observable, pairs = analysis.problem.observable, analysis.problem.pairs
    start = (fitted.modes.mT @ pairs.start[:, :, None]).squeeze(-1)
    if len(analysis.candidates) == 1:
        reached = advance(
            operator, spectrum, start[0], [offset, *(offset + tau for tau in horizons)], observable
        )
        change = reached[:, :, 1:] - reached[:, :, :1]
        return (fitted.modes[0, :, : pairs.readout] @ change).permute(2, 0, 1)
    shape = (fitted.start.shape[0], fitted.start.shape[1])
    found = []
    for choice, tau in zip(choices, horizons, strict=True):
        mine = None if spectrum is None else spectrum.chosen(shape, choice)
        one = _chosen(operator.reshape(*shape, *operator.shape[1:]), choice)
        reached = advance(one, mine, _chosen(start, choice), [offset, offset + tau], observable)
        modes = _chosen(fitted.modes, choice)[:, : pairs.readout]
        found.append((modes @ (reached[:, :, 1:] - reached[:, :, :1])).squeeze(-1))
    return torch.stack(found)


def _spread(
    analysis: _Analysis, now: Tensor, choices: Tensor, horizons: Sequence[float], offset: float
) -> Tensor:
    """(H, B): how far the operators of the oldest fold disagree, see `spread_of`; NaN without a fold."""
    earlier = analysis.tested.earlier
    if earlier is None or offset + max(horizons) <= analysis.tested.strides:  # the back-test says it all
        return now.new_full(now.shape[:2], torch.nan)
    before = _displacements(
        analysis, earlier.fitted, earlier.operator, earlier.spectrum, choices, horizons, offset
    )
    return spread_of(now, before)


def _bounded(problem: Problem, displacement: Tensor, settings: OperatorSettings) -> tuple[Tensor, Tensor]:
    """The displacement within the trust region, (B, d), and the factor that brought it there, (B,)."""
    if settings.max_jump is None:
        return displacement, torch.ones_like(problem.path)
    length = torch.linalg.vector_norm(displacement, dim=-1)
    scale = bound_displacement(length, problem.path, settings.max_jump)
    return displacement * scale[:, None], scale


def _moves(
    analysis: _Analysis, choice: Tensor, displacement: Tensor, strides: float, settings: OperatorSettings
) -> Tensor:
    """(B,) bool: finite, not absurdly long, of a rank, and better than staying where that was tested."""
    length = displacement.square().sum(dim=-1)
    weights = displacement * analysis.problem.scale[:, None]  # their numbers may be beyond float64
    sane = weights.isfinite().all(dim=-1) & (length < _FARTHEST**2)
    moves = sane & (_chosen(analysis.fitted.rank, choice) > 0) & analysis.problem.usable
    if settings.always_move:
        return moves
    return moves & ~(at_stride(_chosen(analysis.tested.errors, choice), strides) >= 1.0)


def _report(
    analysis: _Analysis,
    choice: Tensor,
    error: Tensor,
    scale: Tensor,
    displacement: Tensor,
    settings: OperatorSettings,
) -> Report:
    tested, unit = analysis.tested, analysis.problem.scale
    farthest = _choice(analysis, tested.strides)
    shape = analysis.fitted.start.shape[:2]
    before = analysis.before
    return report_of(
        rank=_chosen(analysis.fitted.rank, choice),
        residual=_chosen(analysis.fitted.residual, choice),
        radius=_chosen(before.radius.reshape(shape), choice),
        values=_chosen(before.values.reshape(*shape, -1), choice),
        tested=tested,
        errors=_chosen(tested.errors, choice),
        predicted_error=error,
        jump_scale=scale,
        jump_length=torch.linalg.vector_norm(displacement, dim=-1) * unit,
        scale=unit,
        late=late_misses(tested, farthest, unit, always_move=settings.always_move),
        candidates=analysis.candidates,
        choice=choice,
    )
