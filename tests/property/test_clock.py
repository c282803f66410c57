"""What must hold of resampling whatever the clock."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import assume, given, settings

from koopcast_server.koopman.clock import Resampling, UnevenClockError, resampling

moderate = settings(deadline=None, max_examples=50)
tame_gaps = st.lists(st.floats(0.2, 1.0), min_size=1, max_size=24)
wild_clocks = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=24, unique=True)


def served(times: list[float]) -> Resampling:
    """The resampling, if the clock is one that is served."""
    try:
        return resampling(times)
    except UnevenClockError:
        assume(False)
        raise


def rising(gaps: list[float], start: float = 0.0) -> list[float]:
    return [start + float(time) for time in np.concatenate([[0.0], np.cumsum(gaps)])]


@moderate
@given(times=wild_clocks)
def test_any_clock_is_refused_or_resampled_in_finite_numbers(times: list[float]) -> None:
    try:
        found = resampling(sorted(times))
    except UnevenClockError:
        return
    assert bool(found.velocities.isfinite().all())
    assert bool(found.snapshots.isfinite().all())
    assert 0 < found.grid_spacing < float("inf")
    assert 1 <= found.amplification <= 16


@moderate
@given(gaps=tame_gaps, start=st.floats(-100.0, 100.0))
def test_what_moves_evenly_on_the_clock_stays_as_it_is(gaps: list[float], start: float) -> None:
    found = served(rising(gaps, start))
    moved = torch.tensor(rising(gaps), dtype=torch.float64).diff() @ found.velocities
    torch.testing.assert_close(moved, torch.full_like(moved, found.grid_spacing), rtol=1e-9, atol=1e-11)


@moderate
@given(gaps=tame_gaps)
def test_nothing_moved_is_lost(gaps: list[float]) -> None:
    found = served(rising(gaps))
    ones = torch.ones(len(gaps), dtype=torch.float64)
    torch.testing.assert_close(found.velocities.sum(dim=1), ones, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        found.snapshots.sum(dim=1), torch.ones(len(gaps) + 1).double(), rtol=0, atol=1e-10
    )


@moderate
@given(gaps=tame_gaps, scale=st.floats(1e-6, 1e6), shift=st.floats(-10.0, 10.0))
def test_unit_and_origin_of_the_clock_do_not_matter(gaps: list[float], scale: float, shift: float) -> None:
    plain = served(rising(gaps))
    other = served([scale * (time + shift) for time in rising(gaps)])
    assume(plain.degree == other.degree)  # at the edge between two degrees rounding decides
    torch.testing.assert_close(other.velocities, plain.velocities, rtol=0, atol=1e-8)
    assert np.isclose(other.grid_spacing, scale * plain.grid_spacing, rtol=1e-9)


@moderate
@given(gaps=st.lists(st.floats(0.4, 1.0), min_size=4, max_size=16))
def test_cubic_paths_are_reproduced(gaps: list[float]) -> None:
    times = np.asarray(rising(gaps)) / sum(gaps)
    found = served([float(time) for time in times])
    grid = np.linspace(0.0, 1.0, len(times))
    for power in range(4):
        np.testing.assert_allclose(found.snapshots.numpy() @ times**power, grid**power, rtol=0, atol=1e-9)


@moderate
@given(gaps=tame_gaps)
def test_time_backwards_is_the_mirror_image(gaps: list[float]) -> None:
    forwards, backwards = served(rising(gaps)), served(rising(gaps[::-1]))
    assume(forwards.degree == backwards.degree)
    torch.testing.assert_close(backwards.velocities.flip(0, 1), forwards.velocities, rtol=0, atol=1e-8)
