"""Resampling to a uniform clock: against scipy's splines, and on gradient descent under learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

import dmd_reference
from koopcast_server.koopman.clock import (
    Resampling,
    UnevenClockError,
    resample_dots,
    resample_gram,
    resample_vectors,
    resampling,
    stored_coefficients,
)

Array = NDArray[np.float64]
STRIDE, WINDOW, TOTAL, RATE = 25, 12, 2000, 0.02
CURVATURES = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])


def clocks(first: float, last: float, count: int, start: float = 3.0) -> list[float]:
    """Clocks whose gaps go geometrically from `first` to `last`."""
    gaps = np.geomspace(first, last, count - 1)
    return [float(time) for time in start + np.concatenate([[0.0], np.cumsum(gaps)])]


@pytest.mark.parametrize(
    ("times", "degree"),
    [
        (clocks(1.0, 0.99, 12), 9),
        (clocks(1.0, 0.85, 12), 7),
        (clocks(1.0, 0.7, 12), 5),
        (clocks(0.1, 1.0, 12), 3),
        (clocks(1.0, 0.02, 12), 3),
        (clocks(1.0, 0.5, 5), 3),
        (clocks(1.0, 0.5, 4), 3),
        (clocks(1.0, 0.5, 3), 2),
        (clocks(1.0, 0.5, 200), 3),
    ],
)
def test_it_is_the_spline_with_not_a_knot_ends(times: list[float], degree: int) -> None:
    found = resampling(times)
    assert found.degree == degree
    grid = np.linspace(times[0], times[-1], len(times))
    if degree == 2:  # the parabola through three points
        wanted = np.array([np.polyval(np.polyfit(times, unit, 2), grid) for unit in np.eye(3)]).T
    else:
        wanted = make_interp_spline(times, np.eye(len(times)), k=degree)(grid)
    np.testing.assert_allclose(found.snapshots.numpy(), wanted, rtol=0, atol=1e-11)
    assert found.grid_spacing == pytest.approx((times[-1] - times[0]) / (len(times) - 1), rel=1e-14)
    assert found.amplification == pytest.approx(np.abs(wanted).sum(axis=1).max(), rel=1e-10)


@pytest.mark.parametrize(
    "times", [[0.0, 0.25], [5.0 + 0.1 * i for i in range(12)], [1e6 + i for i in range(40)]]
)
def test_even_clocks_change_nothing(times: list[float]) -> None:
    found = resampling(times)
    np.testing.assert_allclose(found.velocities.numpy(), np.eye(len(times) - 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.snapshots.numpy(), np.eye(len(times)), rtol=0, atol=1e-12)


def test_nearly_even_clocks_change_nearly_nothing() -> None:
    times = [float(i) + 1e-9 * math.sin(i) for i in range(12)]
    found = resampling(times)
    assert found.degree == 9
    off = (found.velocities - torch.eye(11, dtype=torch.float64)).abs().max()
    assert 0 < float(off) < 1e-7


def test_the_first_and_the_last_snapshot_stay() -> None:
    found = resampling(clocks(1.0, 0.2, 12)).snapshots
    assert found[0].tolist() == [1.0] + [0.0] * 11
    assert found[-1].tolist() == [0.0] * 11 + [1.0]


@pytest.mark.parametrize("count", [3, 4, 7, 12])
def test_velocities_and_products_are_those_of_the_resampled_snapshots(count: int) -> None:
    rng = np.random.default_rng(count)
    snapshots = torch.from_numpy(rng.standard_normal((2, count, 30)).cumsum(axis=1))
    found = resampling(clocks(1.0, 0.3, count))
    matrix = found.velocities
    stored = snapshots.diff(dim=1)
    wanted = (found.snapshots @ snapshots).diff(dim=1)
    last = snapshots[:, -1]
    torch.testing.assert_close(resample_vectors(stored, matrix), wanted, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        resample_gram(stored @ stored.mT, matrix), wanted @ wanted.mT, rtol=0, atol=1e-11
    )
    dots = (stored @ last[:, :, None]).squeeze(-1)
    torch.testing.assert_close(
        resample_dots(dots, matrix), (wanted @ last[:, :, None]).squeeze(-1), rtol=0, atol=1e-11
    )
    coefficients = torch.from_numpy(rng.standard_normal((4, 2, count - 1)))
    on_resampled = torch.einsum("hbm,bmn->hbn", coefficients, wanted)
    on_stored = torch.einsum("hbm,bmn->hbn", stored_coefficients(coefficients, matrix), stored)
    torch.testing.assert_close(on_stored, on_resampled, rtol=0, atol=1e-11)


def test_the_gram_stays_exactly_symmetric() -> None:
    stored = torch.randn(3, 11, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = resample_gram(stored @ stored.mT, resampling(clocks(1.0, 0.1, 12)).velocities)
    assert torch.equal(turned, turned.mT)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.0, 1.0, 1.0, 2.0], "must rise"),
        ([0.0, 2.0, 1.0], "must rise"),
        ([3.0, 2.0], "must rise"),
        ([1e12, 1e12 + 1e-4, 1e12 + 2e-4], "rounding"),
        ([0.0, 5e-324, 1e-323], "must rise"),
        ([-1.7e308, 0.0, 1.7e308], "farther apart"),
        (clocks(1.0, 1e-5, 12), "too uneven"),
        ([0.0, 1e-9, 1.0, 1.0 + 1e-9, 2.0, 2.0 + 1e-9], "too uneven"),
    ],
)
def test_clocks_that_cannot_be_resampled_are_refused(times: list[float], words: str) -> None:
    with pytest.raises(UnevenClockError, match=words):
        resampling(times)


@pytest.mark.parametrize("times", [[], [1.0], [0.0, math.nan, 1.0], [0.0, math.inf]])
def test_what_is_no_clock_is_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="clocks") as caught:
        resampling(times)
    assert not isinstance(caught.value, UnevenClockError)


@pytest.mark.parametrize(
    ("gaps", "limit"),
    [
        (lambda ratio: np.geomspace(1.0, 1.0 / ratio, 11), 1800.0),
        (lambda ratio: np.geomspace(1.0, ratio, 11), 1800.0),
        (lambda ratio: np.where(np.arange(11) < 6, 1.0, 1.0 / ratio), 26.0),
        (lambda ratio: np.where(np.arange(11) == 5, ratio, 1.0), 18.0),
        (lambda ratio: np.where(np.arange(11) % 2, 1.0 / ratio, 1.0), 12.0),
    ],
    ids=["decay", "warm-up", "sudden", "one long gap", "in turns"],
)
def test_the_stated_limits(gaps: Callable[[float], Array], limit: float) -> None:
    def times(ratio: float) -> list[float]:
        return [0.0, *np.cumsum(gaps(ratio)).tolist()]

    assert resampling(times(0.95 * limit)).amplification < 16
    with pytest.raises(UnevenClockError):
        resampling(times(1.1 * limit))


# ------------------------------------------------------------- gradient descent on a quadratic with 6 curvatures


def linear_decay(step: Array) -> Array:
    return RATE * (1 - step / TOTAL)


def cosine_decay(step: Array) -> Array:
    return np.asarray(RATE * 0.5 * (1 + np.cos(np.pi * step / TOTAL)))


def step_decay(at: int) -> Callable[[Array], Array]:
    return lambda step: np.where(step < at, RATE, RATE / 3)


def descent(schedule: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Weights (TOTAL + 1, 60) and summed rates (TOTAL + 1) of full-batch gradient descent."""
    rates = schedule(np.arange(TOTAL, dtype=np.float64))
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((60, 6)))[0]
    shrink = np.cumprod(1.0 - rates[:, None] * CURVATURES, axis=0)
    errors = rng.uniform(0.5, 1.5, 6) * np.concatenate([np.ones((1, 6)), shrink])
    return errors @ axes.T, np.concatenate([[0.0], np.cumsum(rates)])


def errors(schedule: Callable[[Array], Array], base: int) -> tuple[list[float], list[float], Resampling]:
    """Relative errors 200, 400, 800 steps ahead of `base`, by steps and by the clock."""
    weights, clock = descent(schedule)
    taken = np.arange(base - (WINDOW - 1) * STRIDE, base + 1, STRIDE)
    found = resampling(clock[taken].tolist())
    by_steps = dmd_reference.Reference(weights[taken], observable="velocity", rank=6)
    resampled = found.snapshots.numpy() @ weights[taken]
    by_clock = dmd_reference.Reference(resampled, observable="velocity", rank=6)
    wrong: tuple[list[float], list[float]] = ([], [])
    for ahead in (200, 400, 800):
        true = weights[base + ahead] - weights[base]
        strides = (clock[base + ahead] - clock[base]) / found.grid_spacing
        for kept, guess in zip(
            wrong, (by_steps.displacement(ahead / STRIDE), by_clock.displacement(strides)), strict=True
        ):
            kept.append(float(np.linalg.norm(guess - true) / np.linalg.norm(true)))
    return *wrong, found


@pytest.mark.parametrize("schedule", [linear_decay, cosine_decay])
@pytest.mark.parametrize("base", [700, 1000, 1150])
def test_under_smooth_decay_the_clock_is_orders_better(schedule: Callable[[Array], Array], base: int) -> None:
    by_steps, by_clock, _ = errors(schedule, base)
    assert by_steps[-1] > 0.01
    assert max(by_clock) < 2e-4
    assert all(clock < step / 30 for step, clock in zip(by_steps, by_clock, strict=True))


def test_early_on_where_the_rate_hardly_changes_the_clock_still_wins() -> None:
    for schedule in (linear_decay, cosine_decay):
        by_steps, by_clock, found = errors(schedule, 500)
        assert found.degree == 7
        assert max(by_clock) < 3e-4
        assert all(clock < step / 4 for step, clock in zip(by_steps, by_clock, strict=True))


@pytest.mark.parametrize("at", [300, 350, 400])
def test_a_kink_in_the_window_is_survived_for_a_while(at: int) -> None:
    by_steps, by_clock, _ = errors(step_decay(at), 500)
    assert by_steps[0] > 1.0
    assert by_clock[0] < 0.06
    assert by_clock[1] < by_steps[1] / 50


def test_a_kink_before_the_window_is_none() -> None:
    by_steps, by_clock, found = errors(step_decay(400), 1000)
    assert found.degree == 1
    assert max(by_clock) < 1e-6
    assert max(by_steps) < 1e-6


def test_a_kink_to_come_is_in_the_horizon() -> None:
    by_steps, by_clock, _ = errors(step_decay(500), 500)
    assert min(by_steps) > 1.0
    assert max(by_clock) < 1e-3
