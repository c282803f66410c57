"""A run's loss over what it cost, between its evaluations: what a target was reached with, for the suite and the demo alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from koopcast_server.demo.suite.marks import EVALUATIONS

__all__ = ["LossCurve"]

_LEAST_LOSS: Final = 1e-30
"""Losses below count as this one, so that there is a logarithm."""
_INTERPOLATED: Final = 2.0
"""Evaluations that lie further apart than so many of their usual distances have no line between them."""
_SAME: Final = 1 + 1e-9
"""A loss this close to the target has reached it: targets go through a logarithm."""


class LossCurve:
    """The best loss so far. Between evaluations it is a straight line in log(loss).

    But not where they lie far apart, since many evaluations of a probe were made there at once: nobody had the later
    weights before those ended.

    Attributes:
        best: the least loss up to each evaluation, float64; infinite before the first finite one, and where there is none.
    """

    def __init__(self, counted: Sequence[float], losses: Sequence[float | None], budget_steps: float) -> None:
        """Losses at so many counted steps each, rising; None and what is not finite are no losses."""
        self._counted = counted
        self._budget_steps = budget_steps
        found = np.array([math.inf if loss is None else loss for loss in losses] or [math.inf])
        found[~np.isfinite(found)] = math.inf
        self.best: NDArray[np.float64] = np.minimum.accumulate(np.maximum(found, _LEAST_LOSS))

    def within(self, counted: float) -> float:
        """The best loss within so many counted steps."""
        later = int(np.searchsorted(self._counted, counted, side="right"))
        if later in (0, len(self._counted)) or not self._joined(later):
            return float(self.best[max(later - 1, 0)])
        before, after = self._counted[later - 1], self._counted[later]
        share = (counted - before) / (after - before)
        return float(self.best[later - 1] ** (1 - share) * self.best[later] ** share)

    def crossing(self, loss: float, at: Sequence[float]) -> float | None:
        """Where the best loss first is at `loss` or below; None: nowhere.

        Args:
            loss: to reach.
            at: what each evaluation lies at, counted steps or seconds.
        """
        there = np.flatnonzero(self.best <= loss * _SAME)
        if not len(there):
            return None
        later = int(there[0])
        if later == 0 or not self._joined(later):
            return float(at[later])
        fall = math.log(self.best[later - 1]) - math.log(self.best[later])
        share = min(1.0, (math.log(self.best[later - 1]) - math.log(loss)) / fall)
        return float(at[later - 1] + (at[later] - at[later - 1]) * share)

    def far_apart(self, later: int) -> bool:
        """Whether the evaluation before this one lies further back than they usually do."""
        return bool(self._counted[later] - self._counted[later - 1] > _INTERPOLATED * self._usual_steps + 1.0)

    def _joined(self, later: int) -> bool:
        """Whether there is a line between this evaluation and the one before it."""
        return math.isfinite(self.best[later - 1]) and not self.far_apart(later)

    @cached_property
    def _usual_steps(self) -> float:
        return max(float(np.quantile(np.diff(self._counted), 0.1)), self._budget_steps / EVALUATIONS)
