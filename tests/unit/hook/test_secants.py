"""Directions from secant pairs: those of the textbook's recursion, and what it promises on quadratics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from koopcast.hook.secants import Secants

SIZE = 12


def curvature(seed: int, size: int = SIZE) -> Tensor:
    """A symmetric positive definite matrix, float64."""
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def two_loops(pairs: list[tuple[Tensor, Tensor]], metric: Tensor, gradient: Tensor) -> Tensor:
    """Algorithm 7.4 of Nocedal & Wright, with the metric, scaled by the newest pair, for the first inverse Hessian."""
    found, taken = gradient.clone(), []
    for displacement, change in reversed(pairs):
        share = torch.dot(displacement, found) / torch.dot(displacement, change)
        found -= share * change
        taken.append(share)
    if pairs:
        displacement, change = pairs[-1]
        found *= torch.dot(displacement, change) / torch.dot(change, metric * change)
    found *= metric
    for (displacement, change), share in zip(pairs, reversed(taken), strict=True):
        back = torch.dot(change, found) / torch.dot(displacement, change)
        found += (share - back) * displacement
    return -found


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "metric"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 13], ids="{} pairs".format)
@pytest.mark.parametrize("seed", range(4))
def test_the_textbooks_directions(seed: int, count: int, *, scaled: bool) -> None:
    """Four pairs are kept: with more of them, the oldest are overwritten."""
    generator = torch.Generator().manual_seed(100 + seed)
    hessian = curvature(seed)
    metric = torch.ones(SIZE, dtype=torch.float64)
    if scaled:
        metric = torch.exp(torch.randn(SIZE, generator=generator, dtype=torch.float64))
    secants, pairs = Secants(4, metric), []
    for _ in range(count):
        displacement = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        assert secants.add(displacement, hessian @ displacement)
        pairs.append((displacement, hessian @ displacement))
    gradient = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    expected = two_loops(pairs[-4:], metric, gradient)
    assert len(secants) == min(count, 4)
    found = secants.direction(gradient)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float(torch.dot(found, gradient)) < 0.0


def test_what_is_given_stays_as_it_is() -> None:
    secants = Secants(3, torch.ones(SIZE))
    displacement, change, gradient = torch.ones(SIZE), 2.0 * torch.ones(SIZE), torch.arange(SIZE * 1.0)
    secants.add(displacement, change)
    first = secants.direction(gradient)
    displacement.zero_()
    change.zero_()
    assert torch.equal(gradient, torch.arange(SIZE * 1.0))
    assert torch.equal(secants.direction(gradient), first)


def test_curvature_that_is_not_positive_is_refused() -> None:
    secants = Secants(3, torch.ones(2, dtype=torch.float64))
    along = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert secants.add(along, along)
    gradient = torch.tensor([1.0, 2.0], dtype=torch.float64)
    before = secants.direction(gradient)
    across = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for change in (-along, across, torch.zeros_like(along), along * torch.nan):
        assert not secants.add(along, change)
    assert not secants.add(torch.zeros_like(along), along)
    assert len(secants) == 1
    assert torch.equal(secants.direction(gradient), before)


def test_forgotten_it_begins_anew() -> None:
    metric = torch.arange(1.0, SIZE + 1.0)
    secants = Secants(2, metric)
    for place in range(3):
        displacement = torch.eye(SIZE)[place]
        secants.add(displacement, 7.0 * displacement)
    secants.forget()
    gradient = torch.ones(SIZE)
    assert not len(secants)
    assert torch.equal(secants.direction(gradient), -metric)
    displacement = torch.eye(SIZE)[5]
    secants.add(displacement, 4.0 * displacement)
    expected = two_loops([(displacement, 4.0 * displacement)], metric, gradient)
    torch.testing.assert_close(secants.direction(gradient), expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_ends_in_as_many_exact_searches_as_it_has_numbers(seed: int) -> None:
    hessian = curvature(seed)
    here = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    secants, first = Secants(SIZE, torch.ones(SIZE, dtype=torch.float64)), (hessian @ here).norm()
    for _ in range(SIZE):
        gradient = hessian @ here
        direction = secants.direction(gradient)
        length = -torch.dot(gradient, direction) / torch.dot(direction, hessian @ direction)
        secants.add(length * direction, hessian @ (length * direction))
        here = here + length * direction
    assert float((hessian @ here).norm() / first) < 1e-8
