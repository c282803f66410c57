"""The default search order: walk along the horizons from where the last jump ended.

Losses along one operator's trajectory mostly fall and then rise, and the best horizon of one attempt is close to that
of the next. So: begin with the operator and the horizon of the last accepted jump; while longer horizons lower the
loss, go on; where the first one does not, come back to shorter ones; last, try the other operators at the best horizon.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence

from koopcast.prediction import Prediction

__all__ = ["Walk"]

_FIRST_HORIZON = 1
"""Where the first attempt begins, as an index into the horizons, shortest first."""

Steps = Generator[Prediction, float, None]


class Walk:
    """A search order with a memory: one instance for each trainer."""

    def __init__(self) -> None:
        """Begin with no jump behind it."""
        self._last: tuple[int, float] | None = (
            None  # operator and horizon, not the prediction: that is model-sized
        )

    def state(self) -> list[float] | None:
        """Operator and horizon of the last accepted candidate, for `load`; None where there was none."""
        return list(self._last) if self._last is not None else None

    def load(self, state: Sequence[float] | None) -> None:
        """Go on from what `state` returned."""
        self._last = (int(state[0]), float(state[1])) if state is not None else None

    def __call__(self, predictions: Sequence[Prediction], loss_now: float) -> Steps:
        """Yields predictions to probe and is sent their losses."""
        trajectories = _by_operator(predictions)
        if not trajectories:
            return
        first = self._first_operator(trajectories)
        best = _Best(loss_now)
        yield from self._along(trajectories.pop(first), best)
        for others in trajectories.values():
            wanted = best.prediction.steps if best.prediction is not None else None
            yield from _tried(_nearest(others, wanted), best)
        if best.prediction is not None:
            self._last = (best.prediction.operator_index, best.prediction.steps)

    def _along(self, trajectory: list[Prediction], best: _Best) -> Steps:
        """Longer while it helps, else shorter until it does."""
        start = trajectory.index(_nearest(trajectory, self._last[1] if self._last is not None else None))
        yield from _tried(trajectory[start], best)
        if best.improved:
            for longer in trajectory[start + 1 :]:
                yield from _tried(longer, best)
                if not best.improved:
                    return
        else:
            for shorter in reversed(trajectory[:start]):
                yield from _tried(shorter, best)
                if best.improved:
                    return

    def _first_operator(self, trajectories: dict[int, list[Prediction]]) -> int:
        if self._last is not None and self._last[0] in trajectories:
            return self._last[0]
        return next(iter(trajectories))


class _Best:
    """The best prediction so far, and whether the last one probed was it."""

    def __init__(self, loss_now: float) -> None:
        self.prediction: Prediction | None = None
        self.loss = loss_now
        self.improved = False


def _tried(prediction: Prediction, best: _Best) -> Steps:
    loss = yield prediction
    best.improved = loss < best.loss
    if best.improved:
        best.loss, best.prediction = loss, prediction


def _nearest(trajectory: list[Prediction], wanted_steps: float | None) -> Prediction:
    if wanted_steps is None:
        return trajectory[min(_FIRST_HORIZON, len(trajectory) - 1)]
    return min(trajectory, key=lambda prediction: abs(prediction.steps - wanted_steps))


def _by_operator(predictions: Sequence[Prediction]) -> dict[int, list[Prediction]]:
    ordered = sorted(predictions, key=lambda prediction: (prediction.operator_index, prediction.steps))
    groups = itertools.groupby(ordered, key=lambda prediction: prediction.operator_index)
    return {index: list(group) for index, group in groups}
