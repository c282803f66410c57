"""What the service answers: predictions, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcast.gram import Coefficients
from koopcast.operator_messages import debias_name, debias_number
from koopcast.v1 import operator_pb2

__all__ = [
    "Block",
    "Mode",
    "Prediction",
    "Summary",
    "block_from_message",
    "block_to_message",
    "summary_from_message",
    "summary_to_message",
]

Tensors = Mapping[str, npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode of a block's operator: a direction in weight space that keeps its shape while it decays or turns.

    Attributes:
        eigenvalue: per stride, before it is stabilised.
        energy: share of the window's energy that the mode carries, 0 to 1; the shares of a block sum up to 1.
        time_constant_steps: trainer steps in which it decays by a factor e; negative where it grows, infinite on the
            unit circle.
        residual: relative residual ``|A v - lambda v| / |v|`` of the eigenpair on the window's data (Colbrook, Ayton
            & Szoke, "Residual dynamic mode decomposition", J. Fluid Mech. 955, 2023): near 0 the mode is a mode of
            the training itself, near 1 it is one of the fit only. NaN where it is undefined.
    """

    eigenvalue: complex
    energy: float
    time_constant_steps: float
    residual: float


@dataclass(frozen=True, slots=True)
class Block:
    """One block's operator and how far to trust it.

    Attributes:
        name: ``"network"``, the tensor's name, ``"fc1[17]"`` (a node), ``"fc1[17][20:30]"`` (a quasi-node) or
            ``"fc1.weight[123]"`` (a weight, by flat index).
        parameters: parameters in the block.
        rank: rank of the reduced operator; 0 where the window shows no motion.
        spectral_radius: largest modulus of the eigenvalues, per stride, before they are stabilised.
        residual: relative least-squares residual of the fit.
        backtest_error: ``|predicted - true| / |true|`` on held-out snapshots: 1 is what persistence scores. NaN
            where the window is too short for a back-test.
        backtest_error_linear: the same for linear extrapolation.
        backtest_steps: trainer steps the back-test looked ahead; errors beyond it are extrapolated.
        moved: whether the block moves; False: it declined, its displacement is zero.
        extrapolated: whether the asked horizon lies beyond `backtest_steps`.
        eigenvalues: of the reduced operator, by falling modulus, per stride, before they are stabilised.
        predicted_error: predicted ``|predicted - true| / |true|`` of this displacement at the asked horizon. NaN
            where there is no back-test.
        ridge: Tikhonov ridge in use, relative to the largest singular value; the back-tested one where there is a
            choice.
        debias: correction for noise in use, likewise: ``"none"``, ``"total-least-squares"`` or
            ``"forward-backward"``.
        jump_scale: factor by which the displacement was shortened to obey the trust region; 1: not at all.
        modes: the modes, in the order of `eigenvalues`. Only in a job's status; empty in a prediction.
    """

    name: str
    parameters: int
    rank: int
    spectral_radius: float
    residual: float
    backtest_error: float
    backtest_error_linear: float
    backtest_steps: int
    moved: bool
    extrapolated: bool
    eigenvalues: tuple[complex, ...]
    predicted_error: float = math.nan
    ridge: float = 0.0
    debias: str = "none"
    jump_scale: float = 1.0
    modes: tuple[Mode, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """All blocks of a job together: what a reader of thousands of them needs first.

    Attributes:
        blocks: blocks of the partition.
        moved: blocks that are moved.
        untrusted: moved blocks whose back-test at this horizon is missing, or no better than staying or than linear
            extrapolation.
        spectral_radius: largest of all blocks, per stride, before eigenvalues are stabilised.
        backtest_error: of all blocks together, weighted by how far each one moved. NaN where there is none.
        backtest_error_linear: the same for linear extrapolation.
        predicted_error: predicted relative error of the displacement, moved blocks together. NaN where there is none.
        predictability: how much of where the weights went the operator foretold in the back-test: the share of the
            squared displacement of all blocks, 0 to 1, from one stride ahead on to as far as the back-test looks. Near 1
            jumps pay, near 0 noise moves the weights and they do not. The same at every horizon. None where the window
            is too short for a back-test, and from services that do not tell it.
    """

    blocks: int
    moved: int
    untrusted: int
    spectral_radius: float
    backtest_error: float
    backtest_error_linear: float
    predicted_error: float
    predictability: float | None = None


@dataclass(frozen=True, slots=True, eq=False)  # each is itself only: arrays do not compare to one bool
class Prediction:
    """The weights' displacement from `from_step` to `from_step + steps`, as the operator foretells it.

    Attributes:
        id: identifies the prediction in `Job.report`.
        base_step: step of the last snapshot in the window.
        from_step: step the displacement starts from.
        steps: the horizon asked for, in trainer steps.
        segment: segment of the window.
        moved: whether any block moves.
        operator_index: which of the call's operators answered; 0 where none were given.
        blocks: one report a block, in the partition's order, at most 256 of them unless asked otherwise: a node
            partition has a hundred thousand. `summary` speaks of all.
        summary: all blocks together.
        coefficients: of a job whose window the trainer holds, what the displacement is made of (see
            `koopcast.window.held`); None where no block moves, and for other jobs.
    """

    id: str
    base_step: int
    from_step: int
    steps: float
    segment: int
    moved: bool
    operator_index: int
    blocks: tuple[Block, ...]
    summary: Summary
    _displacement: Callable[[], Tensors] = field(repr=False, compare=False)
    _base: Callable[[], Tensors] = field(repr=False, compare=False)
    coefficients: Coefficients | None = field(default=None, repr=False)

    @property
    def displacement(self) -> Tensors:
        """The predicted change of the weights: name to array (float32 or float64). Translate the current ones by it.

        Of an answer with ``reports_only`` it is fetched on each access: hold on to what you get.

        Raises:
            FailedPrecondition: it was to be fetched, and the window has changed since the answer (WINDOW_MOVED).
            KoopcastError: it was to be fetched, and that failed.
        """
        return self._displacement()

    @property
    def predicted_error(self) -> float:
        """Predicted ``|predicted - true| / |true|`` of the displacement; NaN where there is no back-test."""
        return self.summary.predicted_error

    @property
    def weights(self) -> Tensors:
        """The last snapshot plus the displacement: name to array (float32 or float64). Computed on each access."""
        base = self._base()
        return {
            name: base[name] + moved.astype(base[name].dtype) for name, moved in self.displacement.items()
        }


def block_from_message(message: operator_pb2.BlockReport) -> Block:
    """The report of one block."""
    return Block(
        name=message.name,
        parameters=message.parameters,
        rank=message.rank,
        spectral_radius=message.spectral_radius,
        residual=message.residual,
        backtest_error=message.backtest_error,
        backtest_error_linear=message.backtest_error_linear,
        backtest_steps=message.backtest_steps,
        moved=message.moved,
        extrapolated=message.extrapolated,
        eigenvalues=tuple(map(_complex, message.eigenvalues)),
        predicted_error=message.predicted_error,
        ridge=message.ridge,
        debias=debias_name(message.debias),
        jump_scale=message.jump_scale,
        modes=tuple(
            Mode(_complex(mode.eigenvalue), mode.energy, mode.time_constant_steps, mode.residual)
            for mode in message.modes
        ),
    )


def block_to_message(block: Block) -> operator_pb2.BlockReport:
    """The message of one block's report."""
    return operator_pb2.BlockReport(
        name=block.name,
        parameters=block.parameters,
        rank=block.rank,
        spectral_radius=block.spectral_radius,
        residual=block.residual,
        backtest_error=block.backtest_error,
        backtest_error_linear=block.backtest_error_linear,
        backtest_steps=block.backtest_steps,
        moved=block.moved,
        extrapolated=block.extrapolated,
        eigenvalues=list(map(_eigenvalue, block.eigenvalues)),
        predicted_error=block.predicted_error,
        ridge=block.ridge,
        debias=debias_number(block.debias),
        jump_scale=block.jump_scale,
        modes=[
            operator_pb2.Mode(
                eigenvalue=_eigenvalue(mode.eigenvalue),
                energy=mode.energy,
                time_constant_steps=mode.time_constant_steps,
                residual=mode.residual,
            )
            for mode in block.modes
        ],
    )


def summary_from_message(message: operator_pb2.BlockSummary) -> Summary:
    """All blocks together, from their message."""
    return Summary(
        blocks=message.blocks,
        moved=message.moved,
        untrusted=message.untrusted,
        spectral_radius=message.spectral_radius,
        backtest_error=message.backtest_error,
        backtest_error_linear=message.backtest_error_linear,
        predicted_error=message.predicted_error,
        predictability=message.predictability if message.HasField("predictability") else None,
    )


def summary_to_message(summary: Summary) -> operator_pb2.BlockSummary:
    """The message of all blocks together."""
    return operator_pb2.BlockSummary(
        blocks=summary.blocks,
        moved=summary.moved,
        untrusted=summary.untrusted,
        spectral_radius=summary.spectral_radius,
        backtest_error=summary.backtest_error,
        backtest_error_linear=summary.backtest_error_linear,
        predicted_error=summary.predicted_error,
        predictability=summary.predictability,
    )


def _complex(message: operator_pb2.Eigenvalue) -> complex:
    return complex(message.real, message.imaginary)


def _eigenvalue(value: complex) -> operator_pb2.Eigenvalue:
    return operator_pb2.Eigenvalue(real=value.real, imaginary=value.imag)
