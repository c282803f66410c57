"""What must hold of the predictability index, whatever the weights: bounds and symmetries."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dmd_reference import Array
from koopcast_server.koopman import OperatorSettings, Source, predict, totals
from sources import products, vectors

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 10_000)
operators = st.sampled_from(
    [
        OperatorSettings(),
        OperatorSettings(rank_rule="fixed", rank=4, ridge=1e-4),
        OperatorSettings(observable="state", ridge=1e-4),
        OperatorSettings(stabilize=False, always_move=True),
        OperatorSettings(delays=1, forgetting=0.8),
    ]
)


def index_of(source: Source, chosen: OperatorSettings) -> float:
    batch = predict(source, chosen, [3.0])
    found = totals(batch.report, batch.moved[0], extrapolated=False).predictability
    assert found is not None
    return found


def path_of(seed: int, size: int, share: float, count: int = 12) -> Array:
    """A straight line and a decay, with so much of a random walk."""
    rng = np.random.default_rng(seed)
    times = np.arange(count)[:, None]
    signal = times * rng.standard_normal(size) + 0.8**times * rng.standard_normal(size)
    return np.asarray(signal + share * rng.standard_normal((count, size)).cumsum(axis=0))


@pytest.mark.parametrize("size", [3, 40])
@quick
@given(seeds, st.floats(0.0, 3.0), st.integers(4, 30), operators)
def test_it_is_a_share(size: int, seed: int, noise: float, count: int, chosen: OperatorSettings) -> None:
    if chosen.minimum_snapshots >= count:
        return
    path = path_of(seed, size, noise, count)
    assert 0.0 <= index_of((vectors if size < count else products)(path), chosen) <= 1.0


@pytest.mark.parametrize("size", [3, 40])
@quick
@given(seeds, st.floats(0.1, 2.0), st.floats(-60.0, 60.0), operators)
def test_neither_scale_nor_rotation_changes_it(
    size: int, seed: int, noise: float, exponent: float, chosen: OperatorSettings
) -> None:
    form = vectors if size < 12 else products
    path = path_of(seed, size, noise)
    turned, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    wanted = index_of(form(path), chosen)
    assert index_of(form(path * 10.0**exponent), chosen) == pytest.approx(wanted, abs=1e-6)
    assert index_of(form(path @ turned), chosen) == pytest.approx(wanted, abs=1e-6)


@quick
@given(seeds, st.floats(0.0, 2.0))
def test_it_does_not_matter_how_equal_blocks_are_ordered(seed: int, noise: float) -> None:
    blocks = [path_of(seed + number, 40, noise) for number in range(3)]
    forward = index_of(products(*blocks), OperatorSettings())
    assert index_of(products(*blocks[::-1]), OperatorSettings()) == pytest.approx(forward, abs=1e-9)
