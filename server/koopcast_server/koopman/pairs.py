"""The least-squares problem of a block: inputs, the outputs that follow them, and where the prediction starts.

A *fold* is such a problem on the older part of the window, together with what happened next: the back-test fits the
one and predicts the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.settings import Observable, OperatorSettings, TooFewSnapshotsError
from koopcast_server.koopman.trajectory import Trajectory

__all__ = ["Fold", "Pairs", "Problem", "from_trajectory"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Inputs and outputs of an operator, in coordinates. B blocks, e rows, p pairs.

    Attributes:
        inputs: (B, e, p); with delays, e counts all stacked vectors.
        outputs: (B, e, p).
        start: (B, e), the vector to go on from.
        readout: rows that are the block's own coordinates (the newest of the stacked vectors): the first `readout`.
        snapshots: weight snapshots that they are made of, for the rank rule.
        rows: (B,) float64, of the matrix of inputs that these stand for: the stacked weights.
        columns: of that matrix: the pairs.
    """

    inputs: Tensor
    outputs: Tensor
    start: Tensor
    readout: int
    snapshots: int
    rows: Tensor
    columns: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Pairs of the older part of a window, and what came after it.

    Attributes:
        pairs: to fit.
        truth: (B, d, h), displacement from the fold's last snapshot after 1 … h strides.
        last_step: (B, d), its last velocity.
        mean_step: (B, d), the mean of its velocities.
    """

    pairs: Pairs
    truth: Tensor
    last_step: Tensor
    mean_step: Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """All that predictions of B blocks are made from.

    Attributes:
        observable: what the operator advances.
        pairs: of the whole window.
        folds: the oldest first; their `truth` ends at the same snapshot. Empty where the window is too short.
        noise: (B,), squared length of what rounding adds to a vector.
        rounding: (B,), likewise by the arithmetic that made the coordinates.
        usable: (B,) bool.
        scale: (B,), the length of a unit of coordinates.
        path: (B,), length of the path within the window, in coordinates.
        from_gram: coordinates come from a Gram matrix of the vectors: squaring them once more costs no digits.
        lift: coordinates of displacements (…, B, d) to coefficients of velocities (…, B, M) and of the last snapshot
            (…, B); None: primal.
    """

    observable: Observable
    pairs: Pairs
    folds: tuple[Fold, ...]
    noise: Tensor
    rounding: Tensor
    usable: Tensor
    scale: Tensor
    path: Tensor
    from_gram: bool
    lift: Callable[[Tensor], tuple[Tensor, Tensor]] | None


def from_trajectory(trajectory: Trajectory, settings: OperatorSettings) -> Problem:
    """The problem of a sliding window.

    The back-test holds out the last ``h = max(1, M // 3)`` of M velocities, and once more the last half of these.

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state, one more for each delay.
    """
    if trajectory.snapshots < settings.minimum_snapshots:
        raise TooFewSnapshotsError(trajectory.snapshots, settings.minimum_snapshots)
    velocities = trajectory.steps.shape[-1]
    held_out = max(1, velocities // 3)
    folds = tuple(
        _fold(trajectory, settings, velocities - strides)
        for strides in sorted({held_out, (held_out + 1) // 2}, reverse=True)
        if velocities - strides + 1 >= settings.minimum_snapshots
    )
    whole = _pairs(trajectory, settings, velocities)
    return Problem(
        observable=trajectory.observable,
        pairs=whole,
        folds=folds if folds and folds[0].truth.shape[-1] == held_out else (),
        noise=trajectory.noise * (settings.delays + 1),
        rounding=trajectory.rounding * (settings.delays + 1),
        usable=trajectory.usable,
        scale=trajectory.scale,
        path=trajectory.steps.square().sum(1).sqrt().sum(-1),
        from_gram=trajectory.velocity_lift is not None and trajectory.observable == "velocity",
        lift=_lift(trajectory) if trajectory.velocity_lift is not None else None,
    )


def _pairs(trajectory: Trajectory, settings: OperatorSettings, velocities: int) -> Pairs:
    """Pairs of the first `velocities` velocities (and the weights between them)."""
    count = velocities if trajectory.observable == "velocity" else velocities + 1
    vectors = trajectory.vectors[:, :, :count]
    size, delays = vectors.shape[1], settings.delays
    stacked = torch.cat([vectors[:, :, delays - lag : count - lag] for lag in range(delays + 1)], dim=1)
    inputs, outputs = stacked[:, :, :-1], stacked[:, :, 1:]
    if settings.forgetting < 1.0:
        age = torch.arange(inputs.shape[-1] - 1, -1, -1, dtype=inputs.dtype)
        weight = settings.forgetting ** (age / 2.0)
        inputs, outputs = inputs * weight, outputs * weight
    rows = trajectory.elements * (delays + 1)
    return Pairs(inputs, outputs, stacked[:, :, -1], size, velocities + 1, rows, inputs.shape[-1])


def _fold(trajectory: Trajectory, settings: OperatorSettings, velocities: int) -> Fold:
    steps = trajectory.steps
    known, truth = steps[:, :, :velocities], steps[:, :, velocities:].cumsum(-1)
    still = torch.zeros_like(steps[:, :, 0])
    return Fold(
        pairs=_pairs(trajectory, settings, velocities),
        truth=truth,
        last_step=known[:, :, -1] if velocities else still,
        mean_step=known.mean(-1) if velocities else still,
    )


def _lift(trajectory: Trajectory) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    velocity_lift, last_lift = trajectory.velocity_lift, trajectory.last_lift
    assert velocity_lift is not None  # noqa: S101  # for the type checker: asked only of dual trajectories
    assert last_lift is not None  # noqa: S101  # likewise

    def lift(displacement: Tensor) -> tuple[Tensor, Tensor]:
        return (velocity_lift @ displacement[..., None]).squeeze(-1), (displacement * last_lift).sum(-1)

    return lift
