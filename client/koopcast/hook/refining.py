"""Refines a jump: descends on from where it landed, for as long as that pays more than training would.

A predicted jump follows the path of training along its slow modes, as far as a linear operator can see; what the loss
does there is learnt only by the probe. Each probe also has a gradient, for the same price, and with the jump's own
displacement it tells the curvature along it. From there on a few quasi-Newton steps, which begin with what the jump
has shown, go where the operator could not see; their metric is that of the training before, the roots of the mean squares
of its gradients, as in Adagrad and Adam. That needs a loss without noise: see `koopcast.hook.regime`.

Every evaluation counts as a step of training would, so refining must earn as much as training does: it ends where the
logarithm of the loss falls more slowly for each evaluation than it fell for each step since the last attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from koopcast.hook.secants import Secants

__all__ = ["MOST_PAIRS", "Evaluate", "Point", "Refiner", "SquaredGradients", "descent"]

MOST_PAIRS: Final = 30
"""Secant pairs kept where there is room, of two vectors of the model's size each."""
_LOOK_BACK: Final = 10
"""What refining earns is judged over so many evaluations."""
_SUFFICIENT: Final = 1e-4
"""Share of the slope's promise that a step must keep (Armijo)."""
_TRIES: Final = 4
"""Lengths tried along one direction."""
_CAREFUL: Final = 0.1
"""Of the scale given, how long a first step along a bare gradient is."""
_NEWEST_SHARE: Final = 0.1
"""Least weight of the newest gradient among the mean squares."""
_FLOOR: Final = 1e-3
"""Of the mean root, what is added to each, so that weights that hardly have gradients are not thrown far."""
_LEAST_GAIN: Final = 0.01
"""What going on from a point must gain, in the logarithm of the loss, to be tried again."""


@dataclass(frozen=True, slots=True)
class Point:
    """Weights that were evaluated.

    Attributes:
        weights: 1-d, all parameters one after the other.
        loss: the probe's.
        gradient: of the loss, like `weights`.
    """

    weights: Tensor
    loss: float
    gradient: Tensor


Evaluate = Callable[[Tensor], Point | None]
"""Weights to the point there; None where its loss or gradient is not finite or not to be had."""


class SquaredGradients:
    """Mean squares of the gradients of training, newer ones counting more."""

    def __init__(self) -> None:
        """No gradient yet."""
        self._mean: Tensor | None = None
        self._count = 0

    def add(self, gradient: Tensor) -> None:
        """Count a gradient in, 1-d."""
        self._count += 1
        squares = gradient.square()
        if self._mean is None or self._mean.shape != squares.shape:
            self._mean, self._count = squares, 1
        else:
            self._mean.lerp_(squares, max(_NEWEST_SHARE, 1.0 / self._count))

    def forget(self) -> None:
        """No gradient yet, as in the beginning."""
        self._mean, self._count = None, 0

    def metric(self, like: Tensor) -> Tensor:
        """One over the root of the mean square, of each weight, with mean 1; ones where no gradient was seen."""
        if self._mean is None or self._mean.shape != like.shape:
            return torch.ones_like(like)
        roots = self._mean.sqrt().to(like)
        floor = _FLOOR * float(roots.mean())
        if not (math.isfinite(floor) and floor > 0.0):
            return torch.ones_like(like)
        inverse = (roots + floor).reciprocal_()
        return inverse / inverse.mean()


class Refiner:
    """Refines one jump after the other, and remembers the best point that the last one led to.

    Attributes:
        best: where the last refinement ended; None before the first one, and when the weights were replaced.
        used: evaluations of the last refinement.
        stalled: whether going on from the best point was of no use the last time.
        unfinished: whether the last refinement only paused: `further` goes on with it.
        watched: whether training went on from the best point, and it is not known yet whether it can hold it.
        squares: of the gradients of training.
    """

    def __init__(self, limit: int, pairs: int, at_once: int | None = None) -> None:
        """Spend at most `limit` evaluations on a refinement, and pause after `at_once`; remember `pairs` of them."""
        self.best: Point | None = None
        self.used = 0
        self.stalled = False
        self.unfinished = False
        self.watched = False
        self.squares = SquaredGradients()
        self._limit = limit
        self._at_once = limit if at_once is None else at_once
        self._pairs = pairs
        self._earned: list[tuple[int, float]] = []
        self._least_rate = 0.0
        self._going_on = False
        self._secants: Secants | None = None
        self._scale = 0.0
        self._won = False
        self._before: tuple[float, int] | None = None

    def forget(self) -> None:
        """The weights were replaced: nothing that is known holds there."""
        self.best, self._before = None, None
        self.stalled = self.unfinished = self.watched = self._won = False
        self._secants = None

    def note(self, loss: float, step: int, *, watched: bool = False) -> None:
        """Training goes on at `step` from weights of this loss; `watched`: from the best point, if it can hold that."""
        self._before = (loss, step)
        self.watched = watched

    @property
    def began(self) -> float:
        """The loss that the last refinement began with."""
        return self._earned[0][1]

    @property
    def ahead(self) -> Tensor | None:
        """The best point's weights, where training was last seen at a larger loss, or not since it went there; else None.

        Also None where the best point is one of training's own: then nothing was found, and it is left alone.
        """
        if self.best is None or self._before is None or not self._won:
            return None
        return self.best.weights if self.watched or self.best.loss < self._before[0] else None

    def is_behind(self, loss: float) -> bool:
        """Whether training, now at this loss, has lost what the last refinement won."""
        return self.best is not None and not loss <= self.best.loss

    def go_on(self, evaluate: Evaluate) -> Point | None:
        """Go on from the best point, since what training did after it was lost.

        Returns:
            a better point; None where there was nothing to go on from, or it gained next to nothing: `stalled`.
        """
        before, secants = self.best, self._secants
        if before is None or secants is None:
            return None
        self._going_on = True
        point = self._descend(before, secants, evaluate, 0.0)
        return None if self.stalled else point

    def further(self, evaluate: Evaluate) -> Point | None:
        """Go on with a refinement that paused; None: there is none."""
        if not self.unfinished or self.best is None or self._secants is None:
            return None
        return self._go_further(self.best, self._secants, evaluate)

    def refine(
        self, evaluate: Evaluate, now: Point, landed: Point | None, *, step: int, scale: float
    ) -> Point:
        """Descend from where the jump landed, or, where there was none, from here.

        Args:
            evaluate: counts the evaluations itself.
            now: before the jump.
            landed: after it; None: no jump was found.
            step: the trainer's step.
            scale: length of a displacement that is of the size of a jump.

        Returns:
            the best point: never a worse one than `now` and `landed`.
        """
        self.stalled = self._going_on = False
        self._scale = scale
        self._secants = secants = Secants(self._pairs, self.squares.metric(now.gradient))
        if landed is not None:
            secants.add(landed.weights - now.weights, landed.gradient - now.gradient)
        start = now if landed is None else landed
        best = self._descend(start, secants, evaluate, self._paying(now.loss, step))
        self._won = best.loss < now.loss
        return best

    def _paying(self, loss: float, step: int) -> float:
        """What training earns with a step: the descent of the loss since the last attempt."""
        if self._before is None or step <= self._before[1]:
            return 0.0
        before, began = self._before
        return max(0.0, descent(before, loss) / (step - began))

    def _descend(self, start: Point, secants: Secants, evaluate: Evaluate, paying: float) -> Point:
        self.used = 0
        self._earned, self._least_rate = [(0, start.loss)], paying
        return self._go_further(start, secants, evaluate)

    def _go_further(self, start: Point, secants: Secants, evaluate: Evaluate) -> Point:
        pause = self.used + self._at_once
        here = start
        self.unfinished = False
        while self.used < self._limit and not self.unfinished:
            there = self._along(here, secants, evaluate)
            if there is None:
                break
            secants.add(there.weights - here.weights, there.gradient - here.gradient)
            here = there
            self._earned.append((self.used, here.loss))
            if not _still_pays(self._earned, self._least_rate):
                break
            self.unfinished = pause <= self.used < self._limit
        if self._going_on and not self.unfinished:
            self.stalled = not descent(self._earned[0][1], here.loss) >= _LEAST_GAIN
            self._won |= not self.stalled
        self.best = here
        return here

    def _along(self, here: Point, secants: Secants, evaluate: Evaluate) -> Point | None:
        """A step along the quasi-Newton direction that lowers the loss as its slope promises; None: there is none."""
        direction = secants.direction(here.gradient)
        if not len(secants):
            length = float(torch.linalg.vector_norm(direction))
            if not (length > 0.0 and self._scale > 0.0):
                return None
            direction.mul_(min(1.0, _CAREFUL * self._scale / length))
        slope = float(torch.dot(here.gradient, direction))
        if not slope < 0.0:
            secants.forget()
            return None
        factor = 1.0
        for _ in range(_TRIES):
            if self.used >= self._limit:
                return None
            self.used += 1
            there = evaluate(here.weights + direction * factor)
            if there is None:
                factor *= 0.1
                continue
            if there.loss <= here.loss + _SUFFICIENT * factor * slope:
                return there if there.loss < here.loss else None
            # The lowest point of the parabola through both losses and the slope, kept within bounds.
            lowest = -slope * factor**2 / (2.0 * (there.loss - here.loss - slope * factor))
            factor = min(max(lowest, 0.1 * factor), 0.5 * factor)
        secants.forget()
        return None


def descent(before: float, after: float) -> float:
    """By how much a loss fell: of positive losses the logarithm, so that it does not depend on their size."""
    if before > 0.0 and after > 0.0:
        return math.log(before) - math.log(after)
    return before - after


def _still_pays(earned: list[tuple[int, float]], paying: float) -> bool:
    used, loss = earned[-1]
    past = [(then, before) for then, before in earned if then <= used - _LOOK_BACK]
    if not past:
        return True
    then, before = past[-1]
    gained = descent(before, loss) / (used - then)
    return gained > 0.0 and gained >= paying
