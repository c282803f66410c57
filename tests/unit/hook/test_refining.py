"""Refining on losses with known minima: it gets there, it is never worse, and it knows when to stop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from koopcast.hook.refining import Point, Refiner, SquaredGradients, descent

Loss = Callable[[Tensor], Tensor]
LIMIT = 100


class Asked:
    """Evaluates a loss and its gradient, and counts."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.calls = 0
        self.lowest = math.inf

    def __call__(self, weights: Tensor) -> Point | None:
        self.calls += 1
        weights = weights.detach().clone().requires_grad_()
        loss = self.loss(weights)
        (gradient,) = torch.autograd.grad(loss, weights)
        if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
            return None
        self.lowest = min(self.lowest, float(loss.detach()))
        return Point(weights.detach(), float(loss.detach()), gradient)

    def at(self, weights: Tensor) -> Point:
        point = self(weights)
        assert point is not None
        self.calls = 0
        return point


def rosenbrock(weights: Tensor) -> Tensor:
    return (100.0 * (weights[1:] - weights[:-1] ** 2) ** 2 + (1.0 - weights[:-1]) ** 2).sum()


def quadratic(weights: Tensor) -> Tensor:
    """Condition 1e4."""
    return 0.5 * (torch.logspace(-4, 0, len(weights), dtype=torch.float64) * weights**2).sum()


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "start", "least"),
    [(rosenbrock, doubles(-1.2, 1.0), 1e-8), (quadratic, torch.ones(20, dtype=torch.float64), 1e-6)],
    ids=["rosenbrock", "condition-1e4"],
)
def test_it_reaches_the_minimum(loss: Loss, start: Tensor, least: float) -> None:
    evaluate = Asked(loss)
    now = evaluate.at(start)
    refiner = Refiner(LIMIT, 30)
    best = refiner.refine(evaluate, now, None, step=0, scale=1.0)
    assert best.loss < least
    assert evaluate.calls == refiner.used <= LIMIT
    assert refiner.best is best
    assert best.loss == evaluate.lowest


def test_a_jump_tells_the_curvature_along_it() -> None:
    """Along the one direction there is, the first step after the jump ends at the minimum."""
    evaluate = Asked(lambda weights: 0.5 * 3e-3 * weights.square().sum())
    now, landed = evaluate.at(doubles(10.0)), evaluate.at(doubles(9.0))
    refiner = Refiner(1, 5)
    best = refiner.refine(evaluate, now, landed, step=0, scale=1.0)
    assert refiner.used == 1
    assert best.loss < 1e-20


def test_nowhere_better_it_stays() -> None:
    evaluate = Asked(lambda weights: weights.square().sum())
    now = evaluate.at(torch.zeros(3, dtype=torch.float64))
    refiner = Refiner(LIMIT, 5)
    assert refiner.refine(evaluate, now, None, step=0, scale=1.0) is now
    assert refiner.used == evaluate.calls == 0


def test_a_gradient_that_lies_costs_a_few_evaluations() -> None:
    def uphill(weights: Tensor) -> Point | None:
        return Point(weights, float(weights.square().sum()), -2.0 * weights)

    now = uphill(doubles(1.0, 1.0))
    assert now is not None
    refiner = Refiner(LIMIT, 5)
    assert refiner.refine(uphill, now, None, step=0, scale=1.0) is now
    assert refiner.used == 4


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_islands_without_a_loss_are_gone_round(hole: float) -> None:
    """Nothing finite beyond 1.5 from the start, while the first guess after the jump lies far out there."""

    def loss(weights: Tensor) -> Tensor:
        inside = (weights - 3.0).square().sum()
        return inside if float(weights.detach().norm()) < 1.5 else inside * hole

    evaluate = Asked(loss)
    now, landed = evaluate.at(doubles(0.0, 0.0)), evaluate.at(doubles(0.1, 0.0))
    refiner = Refiner(LIMIT, 5)
    best = refiner.refine(evaluate, now, landed, step=0, scale=1.0)
    assert math.isfinite(best.loss)
    assert best.loss < landed.loss
    assert torch.isfinite(best.weights).all()


def test_only_holes_around_it_stays() -> None:
    calls = 0

    def nothing(_: Tensor) -> Point | None:
        nonlocal calls
        calls += 1
        return None

    now = Asked(rosenbrock).at(doubles(-1.2, 1.0))
    refiner = Refiner(LIMIT, 5)
    assert refiner.refine(nothing, now, None, step=0, scale=1.0) is now
    assert calls == refiner.used == 4


@pytest.mark.parametrize("limit", [0, 1, 2, 7])
def test_the_limit_is_kept(limit: int) -> None:
    evaluate = Asked(rosenbrock)
    now = evaluate.at(doubles(-1.2, 1.0, 0.3, 2.0))
    refiner = Refiner(limit, 5)
    best = refiner.refine(evaluate, now, None, step=0, scale=1.0)
    assert evaluate.calls == refiner.used <= limit
    assert best.loss <= now.loss


def refined_after(loss_before: float, steps: int) -> tuple[Refiner, Point]:
    evaluate = Asked(quadratic)
    now = evaluate.at(torch.ones(20, dtype=torch.float64))
    refiner = Refiner(LIMIT, 30)
    refiner.note(loss_before, 0)
    return refiner, refiner.refine(evaluate, now, None, step=steps, scale=1.0)


def test_it_ends_where_it_earns_less_than_training() -> None:
    """Training that halves the loss with each step earns more than any of this; one that stands still, nothing."""
    now = float(quadratic(torch.ones(20, dtype=torch.float64)))
    slow, far = refined_after(now, 10)
    fast, near = refined_after(now * 2.0**10, 10)
    assert fast.used < slow.used
    assert 10 <= fast.used <= 16  # it is judged over ten evaluations
    assert far.loss < near.loss < now


def test_going_on_it_gets_further_until_it_stalls() -> None:
    evaluate = Asked(rosenbrock)
    now = evaluate.at(doubles(-1.2, 1.0, 0.3, 2.0))
    refiner = Refiner(10, 30)
    assert refiner.go_on(evaluate) is None  # from nowhere
    best = refiner.refine(evaluate, now, None, step=0, scale=1.0)
    evaluate.calls = 0
    point = refiner.go_on(evaluate)
    assert point is not None
    assert point.loss < best.loss
    assert not refiner.stalled
    assert 0 < refiner.used == evaluate.calls <= 10
    assert refiner.best is point
    for _ in range(30):
        evaluate.calls = 0
        if refiner.go_on(evaluate) is None:
            break
        assert evaluate.calls <= 10
    assert refiner.stalled
    assert refiner.best is not None
    assert refiner.best.loss <= point.loss
    now = evaluate.at(doubles(0.0, 0.0, 0.0, 0.0))
    refiner.refine(evaluate, now, None, step=1, scale=1.0)
    assert not refiner.stalled


@pytest.mark.parametrize("at_once", [1, 7, 20])
def test_pauses_change_nothing_of_what_is_found(at_once: int) -> None:
    found = []
    for pause in (None, at_once):
        evaluate = Asked(rosenbrock)
        now = evaluate.at(doubles(-1.2, 1.0, 0.3, 2.0))
        refiner = Refiner(60, 30, pause)
        point = refiner.refine(evaluate, now, None, step=0, scale=1.0)
        calls = [evaluate.calls]
        while refiner.unfinished:
            assert point is refiner.best
            further = refiner.further(evaluate)
            assert further is not None
            assert further.loss <= point.loss
            point = further
            calls.append(evaluate.calls)
        assert refiner.further(evaluate) is None
        assert refiner.used == evaluate.calls
        assert refiner.began == now.loss
        found.append((point.weights.tolist(), refiner.used))
        if pause is not None:
            assert len(calls) > 1
            assert max(after - before for before, after in itertools.pairwise([0, *calls])) <= pause + 4
    assert found[0] == found[1]


def test_going_on_with_pauses_is_judged_at_its_end() -> None:
    evaluate = Asked(rosenbrock)
    now = evaluate.at(doubles(-1.2, 1.0, 0.3, 2.0))
    refiner = Refiner(10, 30, 1)
    for _ in range(100):  # until there is nothing left to gain
        point = refiner.refine(evaluate, now, None, step=0, scale=1.0)
        while refiner.unfinished:
            point = refiner.further(evaluate) or point
        now = point
    assert refiner.go_on(evaluate) is None or refiner.unfinished
    while refiner.unfinished:
        assert not refiner.stalled
        refiner.further(evaluate)
    assert refiner.stalled


def test_a_refinement_that_paused_ends_where_weights_are_replaced() -> None:
    evaluate = Asked(rosenbrock)
    refiner = Refiner(60, 30, 5)
    refiner.refine(evaluate, evaluate.at(doubles(-1.2, 1.0)), None, step=0, scale=1.0)
    assert refiner.unfinished
    refiner.forget()
    assert not refiner.unfinished
    assert refiner.further(evaluate) is None


def test_ahead_of_training_are_only_better_points() -> None:
    evaluate = Asked(rosenbrock)
    now = evaluate.at(doubles(-1.2, 1.0))
    refiner = Refiner(20, 5)
    refiner.note(now.loss, 0)
    assert refiner.ahead is None
    best = refiner.refine(evaluate, now, None, step=5, scale=1.0)
    assert refiner.ahead is best.weights  # until it is known that training went on from there
    refiner.note(best.loss, 5)
    assert refiner.ahead is None
    refiner.note(now.loss, 10)
    assert refiner.ahead is best.weights
    assert refiner.is_behind(now.loss)
    assert refiner.is_behind(math.nan)
    assert not refiner.is_behind(best.loss)
    refiner.note(0.5 * best.loss, 15)
    assert refiner.ahead is None
    refiner.note(now.loss, 20)
    refiner.forget()
    assert refiner.ahead is None
    assert refiner.best is None
    assert not refiner.is_behind(now.loss)
    assert refiner.go_on(evaluate) is None


def test_until_training_is_seen_to_hold_it_the_best_point_is_handed_out() -> None:
    refiner, best = refined_after(4.0, steps=10)
    refiner.note(best.loss, 10, watched=True)
    assert refiner.ahead is best.weights
    refiner.note(best.loss, 20)  # looked back on, and held
    assert refiner.ahead is None


def test_where_nothing_was_found_training_is_left_alone() -> None:
    evaluate = Asked(rosenbrock)
    now = evaluate.at(doubles(-1.2, 1.0))
    refiner = Refiner(20, 5)
    assert refiner.refine(lambda _: None, now, None, step=5, scale=1.0) is now
    refiner.note(2.0 * now.loss, 10)  # training was better before: its own affair
    assert refiner.is_behind(2.0 * now.loss)
    assert refiner.ahead is None
    assert refiner.go_on(lambda _: None) is None
    assert refiner.ahead is None
    point = refiner.go_on(evaluate)
    assert point is not None
    assert refiner.ahead is point.weights


def test_losses_fall_by_their_logarithm_where_they_have_one() -> None:
    assert descent(8.0, 4.0) == pytest.approx(math.log(2.0))
    assert descent(4.0, 8.0) == pytest.approx(-math.log(2.0))
    assert descent(1.0, -1.0) == 2.0
    assert descent(-1.0, -3.0) == 2.0
    assert math.isnan(descent(1.0, math.nan))


def test_the_metric_is_one_over_the_root_of_the_mean_square() -> None:
    squares = SquaredGradients()
    like = torch.zeros(3)
    assert torch.equal(squares.metric(like), torch.ones(3))
    for sign in (1.0, -1.0, 1.0):
        squares.add(sign * torch.tensor([1.0, 10.0, 100.0]))
    metric = squares.metric(like)
    assert float(metric.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(metric / metric[0], torch.tensor([1.0, 0.1, 0.01]), rtol=0.05, atol=0)
    assert torch.equal(squares.metric(torch.zeros(4)), torch.ones(4))
    squares.forget()
    assert torch.equal(squares.metric(like), torch.ones(3))


def test_newer_gradients_count_more() -> None:
    squares = SquaredGradients()
    for _ in range(50):
        squares.add(torch.tensor([1.0, 1.0]))
    for _ in range(50):
        squares.add(torch.tensor([1.0, 3.0]))
    metric = squares.metric(torch.zeros(2))
    assert float(metric[0] / metric[1]) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(
    "gradient", [torch.zeros(3), torch.tensor([1.0, torch.inf, 1.0]), torch.ones(3) * torch.nan]
)
def test_without_finite_squares_all_weights_count_alike(gradient: Tensor) -> None:
    squares = SquaredGradients()
    squares.add(gradient)
    assert torch.equal(squares.metric(torch.zeros(3)), torch.ones(3))


def test_weights_that_hardly_have_gradients_are_not_thrown_far() -> None:
    squares = SquaredGradients()
    squares.add(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    metric = squares.metric(torch.zeros(4))
    assert torch.isfinite(metric).all()
    assert float(metric[0] / metric[1]) < 2000.0


def test_gradients_of_another_size_begin_anew() -> None:
    squares = SquaredGradients()
    squares.add(torch.ones(3))
    squares.add(torch.tensor([1.0, 2.0]))
    metric = squares.metric(torch.zeros(2))
    assert float(metric[0] / metric[1]) == pytest.approx(2.0, rel=0.01)
