"""What the service answers: predictions, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcast.v1 import operator_pb2

__all__ = ["Block", "Prediction", "block_from_message", "block_to_message"]

Tensors = Mapping[str, npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Block:
    """One block's operator and how far to trust it.

    Attributes:
        name: ``"network"``, or the tensor's name.
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
        blocks: one report a block.
        displacement: name to array (float32 or float64), the predicted change of the weights. Translate the
            current weights by it.
    """

    id: str
    base_step: int
    from_step: int
    steps: float
    segment: int
    moved: bool
    operator_index: int
    blocks: tuple[Block, ...]
    displacement: Tensors
    _base: Callable[[], Tensors] = field(repr=False, compare=False)

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
        eigenvalues=tuple(complex(value.real, value.imaginary) for value in message.eigenvalues),
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
        eigenvalues=[
            operator_pb2.Eigenvalue(real=value.real, imaginary=value.imag) for value in block.eigenvalues
        ],
    )
