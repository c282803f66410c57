"""What travels of a window that its trainers hold: Gram rows up, coefficients down. NumPy only.

A window of m snapshots and B blocks costs ``8 B (m - 1)`` bytes a snapshot (about twice that for the observable
``"state"``), and as many an answer, whatever the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.operator import Operator

__all__ = ["LARGEST_ROW_BYTES", "MAX_SHARDS", "Coefficients", "GramRow", "WindowHolder", "largest_row_bytes"]

Floats = npt.NDArray[np.float64]
WindowHolder = Literal["server", "trainer"]
"""Where the snapshots of a job are held."""

LARGEST_ROW_BYTES: Final = 4 << 20
"""Bytes of numbers in a message. A partition of so many blocks that a row takes more is refused when the job opens."""


MAX_SHARDS: Final = 4096
"""Most processes that may hold a window together."""


@dataclass(frozen=True, slots=True, eq=False)
class GramRow:
    """What a snapshot adds to a window's products, of B blocks by number, with the h velocities held with it.

    Attributes:
        velocity: (B, h) float64, <v_new, v_j>, oldest first, itself last; h = 0 for the first snapshot of a segment.
        weight: (B, h) float64, <w_new, v_j>, for the observable ``"state"``; (B, 0) for ``"velocity"``.
        squared: (B,) float64, <w_new, w_new>.
    """

    velocity: Floats
    weight: Floats
    squared: Floats

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.velocity.nbytes + self.weight.nbytes + self.squared.nbytes

    def checked(self) -> GramRow:
        """The row as contiguous float64 arrays.

        Raises:
            ArgumentTypeError, ArgumentValueError: it is no row, its shapes do not fit each other, or it is not finite.
        """
        parts = {name: getattr(self, name) for name in ("velocity", "weight", "squared")}
        for name, part in parts.items():
            if not isinstance(part, np.ndarray) or part.dtype.kind != "f":
                raise ArgumentTypeError(f"row.{name} must be a NumPy array of float64", field=name)
            if not np.isfinite(part).all():
                raise ArgumentValueError(
                    f"row.{name} is not finite: the snapshot holds a number that is not, or one whose square is beyond "
                    "float64",
                    field=name,
                    reason="NON_FINITE",
                )
        blocks = self.squared.shape
        fits = len(blocks) == 1 and self.velocity.ndim == self.weight.ndim == 2
        if not fits or self.velocity.shape[:1] != blocks or self.weight.shape[:1] != blocks:
            shapes = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
            raise ArgumentValueError(
                f"a row of B blocks has velocity (B, h), weight (B, h or 0), squared (B,); not {shapes}",
                field="row",
            )
        if self.weight.shape[1] not in (0, self.velocity.shape[1]):
            raise ArgumentValueError(
                f"row.weight has {self.weight.shape[1]} products a block, row.velocity {self.velocity.shape[1]}",
                field="weight",
            )
        return GramRow(*(np.ascontiguousarray(part, np.float64) for part in parts.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """A displacement as coefficients on a window, of B blocks by number: ``sum_j velocity_j v_j + last * w_last``.

    Attributes:
        step: step of the last snapshot of the window that they are of.
        velocity: (B, M) float64, of the velocities held, oldest first.
        last: (B,) float64, of the last snapshot; None: all zero.
        strides: the horizon in strides of the window's clock, for an operator with a `mask_tolerance`.
    """

    step: int
    velocity: Floats
    last: Floats | None = None
    strides: float = 1.0

    @property
    def moved(self) -> bool:
        """Whether any block moves."""
        return bool(self.velocity.any()) or (self.last is not None and bool(self.last.any()))


def largest_row_bytes(blocks: int, operator: Operator) -> int:
    """Bytes of numbers in the row of a full window.

    Raises:
        ArgumentValueError: ``window="segment"``, which has no Gram matrices.
    """
    if operator.window == "segment":
        raise ArgumentValueError(
            'window="segment" accumulates every snapshot of whole blocks where they are, and so needs them at the '
            'service: use snapshots="server", or a window of so many snapshots',
            field="window",
        )
    held = int(operator.window) - 1
    return 8 * blocks * (held * (2 if operator.observable == "state" else 1) + 1)
