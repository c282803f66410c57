"""What must hold of refining whatever the loss is like."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from koopcast.hook.refining import Point, Refiner

moderate = settings(deadline=None, max_examples=150)
numbers = st.floats(-1e3, 1e3, width=32)


class Bumpy:
    """Waves on a quadratic that may open downwards; parts of it are NaN, or have a gradient that lies."""

    def __init__(self, stiffness: list[float], waves: float, holes: float, lies: float) -> None:
        self.stiffness = torch.tensor(stiffness, dtype=torch.float64)
        self.waves, self.holes, self.lies = waves, holes, lies
        self.calls = 0
        self.lowest = math.inf

    def __call__(self, weights: Tensor) -> Point | None:
        self.calls += 1
        with torch.enable_grad():
            at = weights.detach().clone().requires_grad_()
            loss = (self.stiffness * at.square()).sum() + self.waves * torch.sin(3.0 * at).sum()
            (gradient,) = torch.autograd.grad(loss, at)
        place = float(torch.sin(100.0 * weights).sum())
        if place < self.holes or not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
            return None
        self.lowest = min(self.lowest, float(loss.detach()))
        return Point(weights.detach(), float(loss.detach()), -gradient if place > self.lies else gradient)


@moderate
@given(
    landscape=st.lists(st.tuples(numbers, st.floats(-10.0, 1e4)), min_size=1, max_size=6),
    waves=st.floats(0.0, 100.0),
    holes=st.floats(-4.0, 1.0),
    lies=st.floats(-1.0, 4.0),
    limit=st.integers(0, 30),
    pairs=st.integers(1, 4),
    scale=st.floats(0.0, 1e3),
    jump=st.floats(-1.0, 1.0),
    paying=st.floats(-1e3, 1e3),
)
def test_it_never_ends_worse_and_keeps_its_limit(
    landscape: list[tuple[float, float]],
    waves: float,
    holes: float,
    lies: float,
    limit: int,
    pairs: int,
    scale: float,
    jump: float,
    paying: float,
) -> None:
    start = torch.tensor([place for place, _ in landscape], dtype=torch.float64)
    evaluate = Bumpy([stiffness for _, stiffness in landscape], waves, holes, lies)
    now, landed = evaluate(start), evaluate(start + jump)
    if now is None:
        return
    if landed is not None and not landed.loss < now.loss:
        landed = None
    refiner = Refiner(limit, pairs)
    refiner.note(now.loss + paying, 0)
    evaluate.calls = 0
    best = refiner.refine(evaluate, now, landed, step=10, scale=scale)
    assert evaluate.calls == refiner.used <= limit
    assert best.loss <= min(now.loss, landed.loss if landed is not None else math.inf)
    assert refiner.best is best
    evaluate.calls = 0
    further = refiner.go_on(evaluate)
    assert evaluate.calls == refiner.used <= limit
    assert (further is None) == refiner.stalled
    assert further is None or further.loss < best.loss
    assert refiner.best is not None
    assert refiner.best.loss <= best.loss
