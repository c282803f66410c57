"""The modes of one block as they are plotted: conjugate pairs as one, and how each is named."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass

from koopcast.prediction import Mode

__all__ = ["PlottedMode", "plotted_modes"]


@dataclass(frozen=True, slots=True)
class PlottedMode:
    """One real mode, or a conjugate pair of modes, which share everything but the sign of the imaginary part.

    Attributes:
        label: its number, from 1, by falling modulus; ``"2, 3"`` for a pair.
        eigenvalues: one, or the two of a pair; per stride.
        energy: share of the window's energy, that of a pair together.
        time_constant_steps: trainer steps in which it decays by a factor e; negative: it grows; infinite: neither.
        residual: relative residual of the eigenpair.
    """

    label: str
    eigenvalues: tuple[complex, ...]
    energy: float
    time_constant_steps: float
    residual: float

    @property
    def grows(self) -> bool:
        """Whether it lies outside the unit circle."""
        return math.hypot(self.eigenvalues[0].real, self.eigenvalues[0].imag) > 1.0  # abs() would overflow


def plotted_modes(modes: Sequence[Mode]) -> list[PlottedMode]:
    """The modes of a block, conjugate pairs joined; those whose eigenvalue is not finite are left out."""
    numbered = [
        (number, mode) for number, mode in enumerate(modes, start=1) if cmath.isfinite(mode.eigenvalue)
    ]
    found: list[PlottedMode] = []
    while numbered:
        number, mode = numbered.pop(0)
        partner = _take_conjugate(mode, numbered)
        joined = [(number, mode)] if partner is None else [(number, mode), partner]
        found.append(
            PlottedMode(
                label=", ".join(str(one) for one, _ in joined),
                eigenvalues=tuple(one.eigenvalue for _, one in joined),
                energy=sum(one.energy for _, one in joined),
                time_constant_steps=mode.time_constant_steps,
                residual=mode.residual,
            )
        )
    return found


def _take_conjugate(mode: Mode, others: list[tuple[int, Mode]]) -> tuple[int, Mode] | None:
    """The mode's partner, taken out of `others`; None for a real mode."""
    if mode.eigenvalue.imag:
        for index, (_, other) in enumerate(others):
            if other.eigenvalue == mode.eigenvalue.conjugate():
                return others.pop(index)
    return None
