"""Between users' words and the operators' numbers: settings in, reports and summaries out. Pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from koopcast.blocks import BlockPlan
from koopcast.operator import Debias as DebiasName
from koopcast.operator import Operator
from koopcast.prediction import Block, Mode, Summary
from koopcast_server.koopman import Debias, OperatorSettings, RankRule, Report, Totals

if TYPE_CHECKING:
    import torch

    from koopcast_server.solving import NamedMode

__all__ = ["block_reports", "settings_of", "summary_of"]

_DEBIASES: Final[dict[Debias, DebiasName]] = {
    "none": "none",
    "total_least_squares": "total-least-squares",
    "forward_backward": "forward-backward",
}
_RANK_RULES: Final[dict[str, RankRule]] = {
    "auto": "auto",
    "energy": "energy",
    "gavish-donoho": "gavish_donoho",
    "backtest": "backtest",
}


def settings_of(operator: Operator) -> OperatorSettings:
    """What `koopman` needs to know of an operator."""
    debiases = {name: debias for debias, name in _DEBIASES.items()}
    return OperatorSettings(
        observable=operator.observable,
        rank_rule=_RANK_RULES[operator.rank] if isinstance(operator.rank, str) else "fixed",
        rank=1 if isinstance(operator.rank, str) else operator.rank,
        energy=operator.energy,
        ridge=None if isinstance(operator.ridge, str) else operator.ridge,
        stabilize=operator.stabilize,
        debias=debiases.get(operator.debias),
        delays=operator.delays,
        forgetting=operator.forgetting,
        max_jump=operator.max_jump,
        always_move=operator.always_move,
    )


def summary_of(found: Totals) -> Summary:
    """The totals as users know them."""
    return Summary(**dataclasses.asdict(found))


def block_reports(
    plan: BlockPlan,
    stride: int,
    numbers: range,
    report: Report,
    moves: torch.Tensor,
    reach_strides: float,
    modes: Sequence[Sequence[NamedMode]] = (),
) -> tuple[Block, ...]:
    """Reports of consecutive blocks.

    Args:
        plan: names and sizes.
        stride: trainer steps.
        numbers: of the blocks; `report` and the others speak of just these.
        report: what is known of them.
        moves: bool, which of them move.
        reach_strides: how far they look ahead of the last snapshot.
        modes: of each of them; none: they are not told.
    """
    ranks, moved = report.rank.tolist(), moves.tolist()
    radii, residuals = report.spectral_radius.tolist(), report.residual.tolist()
    errors, linear = report.backtest_error.tolist(), report.backtest_error_linear.tolist()
    eigenvalues, predicted = report.eigenvalues.tolist(), report.predicted_error.tolist()
    ridges, scales, debiases = report.ridge.tolist(), report.jump_scale.tolist(), report.debias_names()
    backtest_steps = report.backtest_strides * stride
    return tuple(
        Block(
            name=plan.name(number),
            parameters=plan.size(number),
            rank=ranks[index],
            spectral_radius=radii[index],
            residual=residuals[index],
            backtest_error=errors[index],
            backtest_error_linear=linear[index],
            backtest_steps=backtest_steps if not math.isnan(errors[index]) else 0,
            moved=moved[index],
            extrapolated=reach_strides > report.backtest_strides,
            eigenvalues=tuple(eigenvalues[index][: ranks[index]]),
            predicted_error=predicted[index],
            ridge=ridges[index],
            debias=_DEBIASES[debiases[index]],
            jump_scale=scales[index],
            modes=_modes(modes[index], stride) if modes else (),
        )
        for index, number in enumerate(numbers)
    )


def _modes(modes: Sequence[NamedMode], stride: int) -> tuple[Mode, ...]:
    return tuple(
        Mode(mode.eigenvalue, mode.energy, mode.decay_strides * stride, mode.residual) for mode in modes
    )
