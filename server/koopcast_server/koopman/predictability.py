"""How much of where the weights went the operators foretold: one number a job, before any jump.

It tells whether jumps will pay. Full-batch training on a smooth stretch scores close to 1; where minibatch noise moves
the weights, it scores close to 0, whatever the loss does.

The score leaves out the first stride after the operator's last snapshot. Noise of that snapshot is undone within it, and
every operator foretells that: of pure noise around weights that stay, the way back to the mean is half of the squared
displacement. Nobody gains by it, since a jump translates the weights as they are. From one stride ahead on, all that is
foretold is where training goes. For the same reason means of snapshots score no better than snapshots: neighbouring
means share steps, means two strides apart do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from koopcast_server.koopman.backtest import Backtest
from koopcast_server.koopman.confidence import at_stride

__all__ = ["late_misses", "predictability"]


def late_misses(
    tested: Backtest, choice: Tensor, scale: Tensor, *, always_move: bool
) -> tuple[Tensor, Tensor]:
    """How far each block's prediction ended from the truth, and how far it truly went, after the first stride.

    A block that would decline, because it was no better than staying or because it says nothing finite, is taken at its
    word: it says that it stays, and misses all.

    Args:
        tested: the back-test.
        choice: (B,) int64, the candidate to believe.
        scale: (B,), the length of a unit of coordinates.
        always_move: whether blocks move whatever the back-test says.

    Returns:
        Both (B,), lengths in weights, over all held-out origins (`Backtest.late_squared`); NaN without a back-test.
    """
    if not tested.strides:
        nothing = torch.full_like(scale, torch.nan)
        return nothing, nothing
    blocks = torch.arange(len(choice))
    wrong, moved = tested.late_wrong_squared[choice, blocks], tested.late_squared
    stays = ~wrong.isfinite()
    if not always_move:
        stays = stays | (at_stride(tested.errors[choice, blocks], tested.strides) >= 1.0)
    return torch.where(stays, moved, wrong).sqrt() * scale, moved.sqrt() * scale


def predictability(misses: Tensor, lengths: Tensor) -> float | None:
    """The share of the squared displacement of all blocks that was foretold, from 0 to 1.

    Of the held-out origins o and blocks b, with ``d`` the displacement from one stride ahead of the origin to as far as
    the back-test looks (its first half, too, from the second origin), it is

        ``max(0, 1 - Σ_ob |d_predicted - d_true|² / Σ_ob |d_true|²)``.

    Lengths count as they are, so that it does not change with the unit of the weights, nor under rotations of a block.

    Args:
        misses: (B,), |d_predicted - d_true| over the origins (`late_misses`).
        lengths: (B,), |d_true| likewise.

    Returns:
        0 where nothing moved, and where nothing could be fitted to what moved. None where no block has a back-test.
    """
    told = lengths.isfinite() & misses.isfinite()
    if not told.any():
        return None
    most = float(lengths[told].amax())
    if most == 0.0:
        return 0.0
    missed = float((misses[told] / most).square().sum())  # squares of the lengths themselves might overflow
    share = 1.0 - missed / float((lengths[told] / most).square().sum())
    return max(0.0, share) if math.isfinite(share) else 0.0
