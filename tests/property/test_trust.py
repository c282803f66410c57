"""What must hold of masks, bounds and trusted horizons whatever they are given."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from koopcast.window.mask import mask_displacement
from koopcast_server.koopman.trust import TrustedHorizon, bound_displacement

moderate = settings(deadline=None, max_examples=80)
numbers = st.floats(width=32)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20)
strides = st.integers(1, 10_000)
horizons = st.floats(1e-6, 1e9)
outcomes = st.lists(st.tuples(horizons, st.booleans()), max_size=40)


@moderate
@given(pairs=pairs, tolerance=st.floats(0.0, 100.0), horizon=st.floats(0.01, 1000.0))
def test_the_mask_keeps_or_drops_and_stays_within_its_bounds(
    pairs: list[tuple[float, float]], tolerance: float, horizon: float
) -> None:
    jump, change = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    masked = mask_displacement(jump, change, tolerance, horizon)
    assert bool(masked.isfinite().all())
    kept = masked != 0
    assert torch.equal(masked[kept], jump[kept])
    assert bool((masked.sign()[kept] == change.sign()[kept]).all())
    size = masked.abs()[kept]
    assert bool((size <= (tolerance + 1) * horizon * change.abs()[kept] * (1 + 1e-12)).all())
    assert torch.equal(mask_displacement(masked, change, tolerance, horizon), masked)


@moderate
@given(pairs=pairs, tolerance=st.floats(0.0, 10.0), more=st.floats(0.0, 10.0))
def test_more_tolerance_keeps_more(pairs: list[tuple[float, float]], tolerance: float, more: float) -> None:
    jump, change = torch.tensor(pairs, dtype=torch.float32).unbind(dim=1)
    strict = mask_displacement(jump, change, tolerance) != 0
    loose = mask_displacement(jump, change, tolerance + more) != 0
    assert bool((loose | ~strict).all())


@moderate
@given(
    pairs=st.lists(st.tuples(st.floats(), st.floats(min_value=0.0)), min_size=1), bound=st.floats(1e-6, 1e6)
)
def test_no_bounded_jump_is_longer_than_allowed(pairs: list[tuple[float, float]], bound: float) -> None:
    length, path = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    length = length.abs()
    scale = bound_displacement(length, path, bound)
    assert bool(((scale >= 0) & (scale <= 1)).all())
    usable = length.isfinite() & path.isfinite()
    assert bool(((length * scale)[usable] <= (path * bound)[usable] * (1 + 1e-12)).all())
    short = usable & (path > 0) & (length <= path * bound)
    assert bool((scale[short] == 1).all())


@moderate
@given(stride=strides, outcomes=outcomes)
def test_trust_stays_in_its_bounds_whatever_happens(stride: int, outcomes: list[tuple[float, bool]]) -> None:
    trust = TrustedHorizon.initial(stride)
    for horizon, accepted in outcomes:
        before, trust = trust, trust.after(horizon, accepted=accepted)
        assert stride <= trust.steps <= 256 * stride
        assert trust.steps >= before.steps if accepted else trust.steps <= before.steps


@moderate
@given(stride=strides, outcomes=outcomes, first=horizons, second=horizons, accepted=st.booleans())
def test_the_outcome_at_a_longer_horizon_never_leaves_less_trust(
    stride: int, outcomes: list[tuple[float, bool]], first: float, second: float, accepted: bool
) -> None:
    trust = TrustedHorizon.initial(stride)
    for horizon, good in outcomes:
        trust = trust.after(horizon, accepted=good)
    shorter, longer = sorted((first, second))
    assert trust.after(shorter, accepted=accepted).steps <= trust.after(longer, accepted=accepted).steps


@moderate
@given(
    stride=strides,
    steps=st.floats(1.0, 256.0),
    other=st.floats(1.0, 256.0),
    outcome=st.tuples(horizons, st.booleans()),
)
def test_more_trust_before_is_more_trust_after(
    stride: int, steps: float, other: float, outcome: tuple[float, bool]
) -> None:
    less, more = sorted((steps, other))
    horizon, accepted = outcome
    after = [
        TrustedHorizon(stride, min(256.0 * stride, ratio * stride), False).after(horizon, accepted=accepted)
        for ratio in (less, more)
    ]
    assert after[0].steps <= after[1].steps


@moderate
@given(stride=strides, outcomes=outcomes)
def test_the_unit_of_a_step_does_not_matter(stride: int, outcomes: list[tuple[float, bool]]) -> None:
    plain, scaled = TrustedHorizon.initial(stride), TrustedHorizon.initial(8 * stride)
    for horizon, accepted in outcomes:
        plain = plain.after(horizon, accepted=accepted)
        scaled = scaled.after(8 * horizon, accepted=accepted)
    assert scaled.steps == 8 * plain.steps
