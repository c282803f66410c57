"""Whole segments: the least-squares problem of blocks whose older pairs were accumulated as an R factor.

Rows of R are as good as the pairs they stand for: ``Rᵀ R`` is the sum over all of them. So R, cut into inputs and
outputs, and the pairs that came since stand side by side in one problem, and nothing is decomposed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.pairs import Fold, Pairs, Problem
from koopcast_server.koopman.settings import OperatorSettings, TooFewSnapshotsError

__all__ = ["Streamed", "from_streamed"]

_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
_STILL = 64 * _EPSILON
"""Changes below this share of the largest number are rounding of the R factor."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Blocks of a whole segment, all float64 on the CPU; B blocks of s weights.

    Attributes:
        factor: (B, 2 s, 2 s) upper triangular R of the rows ``[x_t, x_{t+1}]`` of all pairs up to the first of
            `vectors`, the newest of which weighs 1; zeros where there is none.
        vectors: (B, P + 1, s), the vectors since then, oldest first: P more pairs.
        last: (B, s), the last snapshot.
        snapshots: weight snapshots in the segment.
        held_out: strides at the end that the back-test predicts; fewer where there are fewer pairs.
        snapshot_epsilon: relative spacing of the numbers that snapshots were given in; 0: exact.
    """

    factor: Tensor
    vectors: Tensor
    last: Tensor
    snapshots: int
    held_out: int
    snapshot_epsilon: float = 0.0


def from_streamed(streamed: Streamed, settings: OperatorSettings) -> Problem:
    """The problem of a whole segment.

    The path, for the trust region, is that of the held-out strides: older vectors are not stored.

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state.
        ValueError: delays, which need the vectors themselves.
    """
    if settings.delays:
        raise ValueError("a whole segment cannot be delay-embedded: its vectors are not stored")
    if streamed.snapshots < settings.minimum_snapshots:
        raise TooFewSnapshotsError(streamed.snapshots, settings.minimum_snapshots)
    sound = streamed.factor.isfinite().all(-1).all(-1) & streamed.last.isfinite().all(-1)
    sound &= streamed.vectors.isfinite().all(-1).all(-1)
    factor = torch.where(sound[:, None, None], streamed.factor, 0.0)
    vectors = torch.where(sound[:, None, None], streamed.vectors, 0.0).mT
    # by both: a block may have come to rest, or be growing fast
    largest = torch.maximum(factor.abs().amax(dim=(-2, -1)), vectors.abs().amax(dim=(-2, -1)))
    usable = sound & (largest > _TINY)
    scale = torch.where(usable, largest, 1.0)
    factor, vectors = factor / scale[:, None, None], vectors / scale[:, None, None]
    steps = vectors.diff(dim=-1) if settings.observable == "state" else vectors[:, :, 1:]
    usable &= _ever_moved(factor, vectors, settings)
    factor, vectors = (torch.where(usable[:, None, None], one, 0.0) for one in (factor, vectors))
    held_out = min(streamed.held_out, steps.shape[-1] - 1, streamed.snapshots - settings.minimum_snapshots)
    spacing = torch.where(sound[:, None], streamed.last, 0.0) * (streamed.snapshot_epsilon / scale)[:, None]
    return Problem(
        observable=settings.observable,
        pairs=_pairs(factor, vectors, streamed.snapshots, settings),
        folds=(_fold(factor, vectors, steps, held_out, streamed.snapshots, settings),)
        if held_out > 0
        else (),
        noise=spacing.square().sum(-1),
        rounding=torch.zeros_like(scale),
        usable=usable,
        scale=scale,
        path=steps[:, :, -max(1, streamed.held_out) :].square().sum(1).sqrt().sum(-1),
        from_gram=False,
        lift=None,
    )


def _pairs(factor: Tensor, vectors: Tensor, snapshots: int, settings: OperatorSettings) -> Pairs:
    """Rows of R and the pairs of `vectors`, (B, s, P + 1), side by side; the newest pair weighs 1."""
    size, later = vectors.shape[1], vectors.shape[-1] - 1
    telling = (factor.abs().amax(dim=-1) > _EPSILON).any(dim=0)  # the others are empty, or rounding
    rows = factor[:, telling].mT * settings.forgetting ** (later / 2.0)
    age = torch.arange(later - 1, -1, -1, dtype=vectors.dtype)
    weight = settings.forgetting ** (age / 2.0)
    inputs = torch.cat([rows[:, :size], vectors[:, :, :-1] * weight], dim=-1)
    outputs = torch.cat([rows[:, size:], vectors[:, :, 1:] * weight], dim=-1)
    columns = max(1, snapshots - (2 if settings.observable == "velocity" else 1))
    rows_of = torch.full_like(vectors[:, 0, 0], size)
    return Pairs(inputs, outputs, vectors[:, :, -1], size, snapshots, rows_of, columns)


def _fold(
    factor: Tensor, vectors: Tensor, steps: Tensor, held_out: int, snapshots: int, settings: OperatorSettings
) -> Fold:
    known = steps[:, :, :-held_out]
    return Fold(
        pairs=_pairs(factor, vectors[:, :, :-held_out], snapshots - held_out, settings),
        truth=steps[:, :, -held_out:].cumsum(-1),
        last_step=known[:, :, -1],
        mean_step=known.mean(-1),
    )


def _ever_moved(factor: Tensor, vectors: Tensor, settings: OperatorSettings) -> Tensor:
    """(B,) bool: whether inputs and outputs of any pair differ (weights), or are not zero (velocities)."""
    size = vectors.shape[1]
    if settings.observable == "velocity":
        return (factor.abs().amax(dim=(-2, -1)) > 0) | (vectors.abs().amax(dim=(-2, -1)) > 0)
    apart = (factor[:, :, :size] - factor[:, :, size:]).abs().amax(dim=(-2, -1))
    since = (
        vectors.diff(dim=-1).abs().amax(dim=(-2, -1)) if vectors.shape[-1] > 1 else torch.zeros_like(apart)
    )
    return (apart > _STILL * factor.abs().amax(dim=(-2, -1))) | (since > 0)
