"""Jumps along a line or a curve, how far decided by the task's probe: the hook's own settings for a rival's prediction.

A snapshot every 10 steps; with 10 of them the probe looks 4, 16, 64 or 256 strides ahead. The search begins at the
horizon of the last jump that stayed, goes on to longer ones while the loss falls, and where the first one does not
lower it, comes back to shorter ones. After a jump the window begins anew; a jump is looked back on one stride later and
undone where the loss is then more than a tenth worse than before it; after a refusal the next attempt comes half a
window later. The optimizer's state stays. Written apart from koopcast's hook, so that its rivals stay as they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from acceleration.methods.running import Beside, Start
from acceleration.methods.trying import Landing, Tester
from acceleration.methods.weights import Tensors

__all__ = ["EVERY_STEPS", "HORIZON_STRIDES", "WINDOW", "Predict", "ProbedJumps"]

EVERY_STEPS: Final = 10
WINDOW: Final = 10
HORIZON_STRIDES: Final = (4, 16, 64, 256)
_FIRST_HORIZON: Final = 1
_TOLERANCE: Final = 0.1

Predict = Callable[[Tensor, int], Tensor]
"""(snapshots (window, n), strides ahead) to the displacement (n) from the last snapshot."""


class ProbedJumps(Beside):
    """Jumps that the probe chooses."""

    def __init__(self, start: Start, predict: Predict) -> None:
        """Jump by what `predict` gives."""
        self._predict = predict
        self._tester = Tester(start)
        self._weights = Tensors.trained(start.problem.model)
        self._window: deque[Tensor] = deque(maxlen=WINDOW)
        self._horizon = _FIRST_HORIZON
        self._jumps: list[list[float]] = []
        self._steps = 0
        self._attempt_at = WINDOW * EVERY_STEPS
        self._watched_at = -1
        self._before: tuple[float, Any] = (math.nan, None)
        self._undone = 0

    def after_step(self) -> float:
        """Take a snapshot, look back, or try to jump, where it is time."""
        self._steps += 1
        if self._steps % EVERY_STEPS:  # jumps come at snapshots: the grid never shifts
            return 0.0
        spent = self._tester.counted
        if self._steps == self._watched_at:
            self._look_back()
        self._window.append(self._weights.flat())
        if self._steps == self._attempt_at:
            self._attempt()
        return self._tester.counted - spent

    def facts(self) -> dict[str, Any]:
        """Jumps and what they cost."""
        return {
            "jumps": self._jumps,
            "jumps_undone": self._undone,
            "probe_evaluations": self._tester.probe_evaluations,
            "on_jump_evaluations": self._tester.adaptations,
        }

    def _attempt(self) -> None:
        loss_now = self._tester.loss()
        found = self._search(loss_now) if math.isfinite(loss_now) else None
        index, landing = found if found is not None else (self._horizon, None)
        counted = self._steps + self._tester.counted
        self._jumps.append([counted, int(landing is not None), HORIZON_STRIDES[index] * EVERY_STEPS])
        if landing is None:
            self._attempt_at = self._steps + WINDOW // 2 * EVERY_STEPS
            return
        self._horizon = index
        self._before = (loss_now, self._tester.departure())
        self._tester.stay(landing)
        self._begin_anew()
        self._watched_at = self._steps + EVERY_STEPS

    def _search(self, loss_now: float) -> tuple[int, Landing] | None:
        """Index and landing of the best horizon that lowers the loss."""
        snapshots = torch.stack(list(self._window))
        best: tuple[int, Landing] | None = None
        for index in range(self._horizon, len(HORIZON_STRIDES)):
            landing = self._tester.land(self._predict(snapshots, HORIZON_STRIDES[index]))
            if not landing.loss < (loss_now if best is None else best[1].loss):
                break
            best = index, landing
        if best is not None:
            return best
        for index in reversed(range(self._horizon)):
            landing = self._tester.land(self._predict(snapshots, HORIZON_STRIDES[index]))
            if landing.loss < loss_now:
                return index, landing
        return None

    def _look_back(self) -> None:
        loss_before, departure = self._before
        loss_now = self._tester.loss()
        self._before = (math.nan, None)
        if loss_now <= loss_before + _TOLERANCE * abs(loss_before):
            return
        self._tester.go_back(departure)
        self._jumps[-1][1] = 0
        self._undone += 1
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._window.clear()
        self._attempt_at = self._steps + WINDOW * EVERY_STEPS
