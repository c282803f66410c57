"""When a run is evaluated: at the same steps of the optimizer as plain training, and oftener where much is spent beside them."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["EVALUATIONS", "Marks"]

EVALUATIONS: Final = 64
"""Over the budget, besides the one before the first step."""
_LONGEST: Final = 1.5
"""Times the usual distance, in counted steps, after which a run is evaluated where no mark lies."""


class Marks:
    """The points of the curve.

    Where losses are noisy, the best of 64 is a matter of luck as well. A run that trains as the plain one does, and
    differs by a probe or two, is therefore evaluated with the very same weights.
    """

    def __init__(self, budget_steps: int) -> None:
        """Spread them over a budget."""
        self._distance = budget_steps / EVALUATIONS
        self._next = 0
        self._counted_steps = 0.0

    def due(self, optimizer_steps: int, counted_steps: float) -> bool:
        """Whether an evaluation is due now; if so it is taken as made. To be asked after each step of the optimizer."""
        marked = optimizer_steps >= self._next * self._distance
        if not marked and counted_steps - self._counted_steps < _LONGEST * self._distance:
            return False
        self._next = math.floor(optimizer_steps / self._distance) + 1
        self._counted_steps = counted_steps
        return True
