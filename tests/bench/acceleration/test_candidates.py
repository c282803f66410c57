"""That every other way to look ahead is exact where it ought to be, and that what it is worth is counted right."""

from __future__ import annotations

import numpy as np
import pytest

from acceleration.candidates import Attempt, candidate_table, worth
from acceleration.extrapolations import Array, anderson, measured_momentum, slow_modes, straight

STRIDES = (1, 4, 16)


def path_of(eigenvalues: Array, *, snapshots: int = 10, ahead: int = 0) -> Array:
    """Weights that relax towards 3 along as many directions of 40 weights as there are eigenvalues."""
    generator = np.random.default_rng(4)
    directions = np.linalg.qr(generator.standard_normal((40, len(eigenvalues))))[0]
    times = np.arange(ahead, ahead + snapshots)
    found: Array = 3.0 + eigenvalues[None, :] ** times[:, None] @ directions.T
    return found


def later(eigenvalues: Array) -> Array:
    return np.stack([path_of(eigenvalues, ahead=count)[-1] for count in STRIDES])


def test_a_straight_line_goes_straight_on() -> None:
    path = np.outer(np.arange(10.0), np.array([1.0, -2.0]))
    np.testing.assert_allclose(straight(path, STRIDES), np.outer([10.0, 13.0, 25.0], [1.0, -2.0]))


def test_one_eigenvalue_is_measured() -> None:
    eigenvalues = np.array([0.93])
    np.testing.assert_allclose(
        measured_momentum(path_of(eigenvalues), STRIDES), later(eigenvalues), rtol=1e-9
    )


def test_slow_modes_are_those_of_the_path() -> None:
    eigenvalues = np.array([0.99, 0.95, 0.91])
    np.testing.assert_allclose(slow_modes(path_of(eigenvalues), STRIDES), later(eigenvalues), rtol=1e-7)


def test_fast_modes_stay_where_they_are_and_none_grows() -> None:
    fast = path_of(np.array([0.5]))
    np.testing.assert_allclose(slow_modes(fast, STRIDES), np.repeat(fast[-1:], 3, axis=0))
    growing = path_of(np.array([1.2]))
    step = growing[-1] - growing[-2]
    np.testing.assert_allclose(slow_modes(growing, (5,))[0], growing[-1] + 5 * step, rtol=1e-9)


def test_anderson_finds_where_a_linear_path_ends() -> None:
    path = path_of(np.array([0.9, 0.6, 0.3]))
    (found,) = anderson(path, [1e-13])
    np.testing.assert_allclose(found, 3.0, atol=1e-4)


@pytest.mark.parametrize("way", [straight, slow_modes, measured_momentum])
def test_weights_that_stand_still_stay(way: object) -> None:
    path = np.full((10, 4), 2.0)
    assert callable(way)
    np.testing.assert_array_equal(way(path, STRIDES), np.full((3, 4), 2.0))


def test_what_a_lower_loss_is_worth() -> None:
    losses = [4.0, 3.0, 2.0, 2.5, 1.0]
    assert worth(losses, 1, 3.0) == 0
    assert worth(losses, 1, 2.0) == 10
    assert worth(losses, 1, 1.5) == 30
    assert worth(losses, 2, 0.5) == 20  # never: all that is left


def test_the_table_has_a_line_for_every_way() -> None:
    attempts = [
        Attempt("walk", "deterministic", 100, 1.0, 2, 30),
        Attempt("walk", "deterministic", 200, 1.0, 4, 0),
        Attempt("line", "stochastic", 100, 1.0, 5, 10),
    ]
    lines = candidate_table(attempts).splitlines()
    assert lines[2] == "| walk | 15.0 | 3.0 | 12.0 | 50 % | – | – | – | – |"
    assert lines[3].endswith("| 10.0 | 5.0 | 5.0 | 100 % |")
