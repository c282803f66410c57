"""What the HTTP API says of a job's operators, as pydantic models: every field with its meaning and unit.

JSON knows neither NaN nor infinity: a measure that is undefined (a back-test on too short a window) or not
finite is ``null``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from koopcast.operator import Operator
from koopcast.prediction import Block, Mode, Summary
from koopcast.status import HistoryPoint

__all__ = [
    "Answer",
    "BlockModel",
    "BlocksSummary",
    "Eigenvalue",
    "Measure",
    "ModeModel",
    "Model",
    "OperatorModel",
]


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measure = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number that may be undefined: NaN and infinities become null."""


class Model(BaseModel):
    """What every answer is: fixed, and without fields that nobody described."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OperatorModel(Model):
    """A job's operator settings."""

    observable: str = Field(description="`velocity` (differences of snapshots) or `state` (the weights).")
    partition: str = Field(
        description="Which weights share an operator: `network`, `tensor`, `node`, `quasi_node` or `weight`."
    )
    quasi_node_inputs: int | None = Field(
        description="With `quasi_node`: inputs of a unit in one block; else null."
    )
    window: int | Literal["segment"] = Field(
        description="Weight snapshots the window holds when full, or `segment`: all of the segment count, none is stored."
    )
    rank: int | str = Field(
        description="Number of modes, or the rule that finds it: `auto`, `energy`, `gavish-donoho` or `backtest`."
    )
    energy: float = Field(
        description="With rank `energy`: share of the squared singular values kept, (0, 1]."
    )
    ridge: float | Literal["backtest"] = Field(
        description="Tikhonov ridge, as a fraction of the largest singular value, or `backtest`: the one that would "
        "have served best."
    )
    debias: str = Field(
        description="Correction for noise: `none`, `total-least-squares`, `forward-backward` or `backtest`."
    )
    delays: int = Field(ge=0, description="Earlier vectors stacked below each one (delay embedding).")
    forgetting: float = Field(description="Weight of a snapshot pair relative to its successor's, (0, 1].")
    stabilize: bool = Field(description="Whether eigenvalues outside the unit disc are moved onto it.")
    max_jump: float | None = Field(
        description="Longest displacement of a block, in lengths of its path within the window; null: no bound."
    )
    mask_tolerance: float | None = Field(
        description="How much further than its last observed change a weight may be moved, relative to it; null: no mask."
    )
    always_move: bool = Field(description="Whether blocks move whatever their back-test says.")

    @classmethod
    def of(cls, operator: Operator) -> Self:
        """The model of an operator's settings."""
        return cls(**{name: getattr(operator, name) for name in cls.model_fields})


class Eigenvalue(Model):
    """One eigenvalue of a reduced operator."""

    real: Measure = Field(description="Real part, per stride.")
    imaginary: Measure = Field(description="Imaginary part, per stride.")

    @classmethod
    def of(cls, value: complex) -> Self:
        """The model of an eigenvalue."""
        return cls(real=value.real, imaginary=value.imag)


class ModeModel(Model):
    """One mode of a block's operator."""

    eigenvalue: Eigenvalue = Field(description="Its eigenvalue, per stride, before it is stabilised.")
    energy: Measure = Field(
        description="Share of the window's energy that it carries; those of a block sum up to 1."
    )
    time_constant_steps: Measure = Field(
        description="Trainer steps in which it decays by a factor e; negative where it grows, null on the unit circle "
        "(infinite)."
    )
    residual: Measure = Field(
        description="Relative residual |A v - lambda v| / |v| of the eigenpair on the window's data."
    )

    @classmethod
    def of(cls, mode: Mode) -> Self:
        """The model of a mode."""
        return cls(
            eigenvalue=Eigenvalue.of(mode.eigenvalue),
            energy=mode.energy,
            time_constant_steps=mode.time_constant_steps,
            residual=mode.residual,
        )


class BlockModel(Model):
    """One block's operator, and how far to trust it. Undefined measures are null."""

    name: str = Field(
        description="`network`, the tensor's name, `fc1[17]` (a node), `fc1[17][20:30]` (a quasi-node) or "
        "`fc1.weight[123]` (a weight)."
    )
    parameters: int = Field(ge=0, description="Parameters in the block.")
    rank: int = Field(ge=0, description="Rank of the reduced operator; 0 where the window shows no motion.")
    eigenvalues: list[Eigenvalue] = Field(
        description="Of the reduced operator, by falling modulus, per stride, before they are stabilised."
    )
    modes: list[ModeModel] = Field(description="The modes, in the order of `eigenvalues`.")
    spectral_radius: Measure = Field(description="Largest modulus of the eigenvalues, per stride, likewise.")
    residual: Measure = Field(description="Relative least-squares residual of the fit, |Y - AX| / |Y|.")
    backtest_error: Measure = Field(
        description="|predicted - true| / |true| on held-out snapshots: 1 is what staying in place scores. "
        "Null where the window is too short for a back-test."
    )
    backtest_error_linear: Measure = Field(description="The same for linear extrapolation; null likewise.")
    backtest_steps: int = Field(
        ge=0, description="Trainer steps the back-test looked ahead; beyond them its errors are extrapolated."
    )
    predicted_error: Measure = Field(
        description="Predicted |predicted - true| / |true| of a displacement made now, as far ahead as the job is "
        "trusted; null without a back-test."
    )
    ridge: Measure = Field(description="Ridge in use; the back-tested one where there is a choice.")
    debias: str = Field(description="Correction for noise in use, likewise.")
    jump_scale: Measure = Field(
        description="Factor by which the displacement is shortened to obey the trust region; 1: not at all."
    )
    moved: bool = Field(description="Whether a prediction made now would move the block.")

    @classmethod
    def of(cls, block: Block) -> Self:
        """The model of one block's report."""
        plain = {
            name: getattr(block, name) for name in cls.model_fields if name not in ("eigenvalues", "modes")
        }
        return cls(
            **plain,
            eigenvalues=[Eigenvalue.of(value) for value in block.eigenvalues],
            modes=[ModeModel.of(mode) for mode in block.modes],
        )


class BlocksSummary(Model):
    """All blocks of a job together. Undefined measures are null."""

    blocks: int = Field(ge=0, description="Blocks of the partition.")
    moved: int = Field(ge=0, description="Blocks that a prediction made now would move.")
    untrusted: int = Field(
        ge=0,
        description="Moved blocks whose back-test is missing, or no better than staying or than linear extrapolation.",
    )
    spectral_radius: Measure = Field(description="Largest of all blocks, per stride.")
    backtest_error: Measure = Field(
        description="Back-test error of all blocks together, weighted by how far each one moved."
    )
    backtest_error_linear: Measure = Field(description="The same for linear extrapolation.")
    predicted_error: Measure = Field(
        description="Predicted relative error, as far ahead as the job is trusted."
    )
    predictability: Measure = Field(
        description="Share of the squared displacement that was foretold in the back-test of the window as it is now, 0 to "
        "1; null where it is too short for one."
    )

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """The model of a summary."""
        return cls(**{name: getattr(summary, name) for name in cls.model_fields})


class Answer(Model):
    """What one answer to a trainer said of the operators. Undefined measures are null."""

    step: int = Field(ge=0, description="Trainer step of the newest snapshot then.")
    spectral_radius: Measure = Field(description="Largest of all blocks, per stride.")
    backtest_error: Measure = Field(description="Back-test error of all blocks together.")
    backtest_error_linear: Measure = Field(description="The same for linear extrapolation.")
    horizon_steps: Measure = Field(description="Trainer steps asked for, the longest where several were.")
    predicted_error: Measure = Field(description="Predicted relative error at that horizon.")
    moved: bool = Field(description="Whether any block moved.")

    @classmethod
    def of(cls, point: HistoryPoint) -> Self:
        """The model of a point of the history."""
        return cls(**{name: getattr(point, name) for name in cls.model_fields})
