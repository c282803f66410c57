"""The mask, the bound on a jump, and the trusted horizon, case by case."""

from __future__ import annotations

import math

import pytest
import torch

from koopcast.window.mask import mask_displacement, mask_displacement_
from koopcast_server.koopman.trust import TrustedHorizon, bound_displacement

INF, NAN = math.inf, math.nan


def test_the_mask_is_that_of_the_paper() -> None:
    change = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -2.0, 0.0, 0.0])
    jump = torch.tensor([0.99, 1.0, 1.3, 1.5, 1.51, -1.2, 1.2, -3.0, 0.5, 0.0])
    kept = [0.0, 1.0, 1.3, 1.5, 0.0, -1.2, 0.0, -3.0, 0.0, 0.0]
    assert mask_displacement(jump, change, 0.5).tolist() == torch.tensor(kept).tolist()


def test_a_longer_horizon_may_go_farther_but_need_not() -> None:
    change = torch.ones(5, dtype=torch.float64)
    jump = torch.tensor([0.9, 1.0, 8.0, 15.0, 15.1], dtype=torch.float64)
    assert mask_displacement(jump, change, 0.5, strides=10.0).tolist() == [0.0, 1.0, 8.0, 15.0, 0.0]


def test_a_fraction_of_a_stride_may_go_less_far() -> None:
    change = torch.ones(4, dtype=torch.float64)
    jump = torch.tensor([0.2, 0.25, 0.375, 0.4], dtype=torch.float64)
    assert mask_displacement(jump, change, 0.5, strides=0.25).tolist() == [0.0, 0.25, 0.375, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_dropped(dtype: torch.dtype) -> None:
    change = torch.tensor([1.0, 1.0, 1.0, NAN, INF, INF, 2.0], dtype=dtype)
    jump = torch.tensor([NAN, INF, -INF, 1.0, 1.0, INF, 2.0], dtype=dtype)
    masked = mask_displacement(jump, change, 1.0)
    assert masked.dtype == dtype
    assert masked.tolist() == [0.0] * 6 + [2.0]


def test_half_precision_does_not_overflow_in_the_bound() -> None:
    change = torch.tensor([60000.0], dtype=torch.float16)
    assert mask_displacement(change, change, 3.0, strides=100.0).tolist() == [60000.0]


def test_in_place_and_copied() -> None:
    change, jump = torch.ones(2, 3), torch.full((2, 3), 5.0)
    assert mask_displacement(jump, change, 1.0).sum() == 0
    assert jump.sum() == 30
    assert mask_displacement_(jump, change, 1.0) is jump
    assert jump.sum() == 0


def test_long_displacements_are_masked_to_the_last_element() -> None:
    count = 3 * 2**18 + 5
    jump = torch.ones(count)
    change = torch.where(torch.arange(count) % 3 == 0, 1.0, -1.0)
    assert torch.equal(mask_displacement(jump, change, 0.0), (change > 0).float())


def test_a_change_that_is_a_view_with_gaps() -> None:
    change = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).T
    assert mask_displacement(torch.ones(2, 2), change, 0.0).tolist() == [[1.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(2), torch.ones(2), -0.1), "tolerance"),
        ((torch.ones(2), torch.ones(2), NAN), "tolerance"),
        ((torch.ones(2), torch.ones(2), INF), "tolerance"),
        ((torch.ones(2), torch.ones(2), 1.0, 0.0), "horizon"),
        ((torch.ones(2), torch.ones(2), 1.0, INF), "horizon"),
        ((torch.ones(2), torch.ones(3), 1.0), "differ"),
        ((torch.ones(2), torch.ones(2, dtype=torch.float64), 1.0), "differ"),
        ((torch.ones(2, 3).T, torch.ones(3, 2), 1.0), "contiguous"),
    ],
)
def test_a_mask_without_meaning_is_refused(arguments: tuple[torch.Tensor, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mask_displacement_(*arguments)  # type: ignore[arg-type]  # numbers among tensors


def test_long_jumps_are_shortened_to_the_bound() -> None:
    length = torch.tensor([1.0, 6.0, 60.0, 0.0, 5.0, INF, NAN, 1.0, 1.0], dtype=torch.float64)
    path = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0, INF, NAN], dtype=torch.float64)
    scale = bound_displacement(length, path, 3.0)
    assert scale.tolist() == [1.0, 1.0, 0.1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_no_bound_shortens_nothing() -> None:
    length = torch.tensor([1.0, 1e300, INF])
    assert bound_displacement(length, torch.zeros(3), None).tolist() == [1.0, 1.0, 1.0]


def test_a_bound_beyond_a_float_shortens_nothing() -> None:
    huge = torch.tensor([1e300], dtype=torch.float64)
    assert bound_displacement(huge, huge, 1e20).tolist() == [1.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, NAN])
def test_a_bound_without_meaning_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        bound_displacement(torch.ones(1), torch.ones(1), bound)


def trust(steps: float, *, searching: bool = True) -> TrustedHorizon:
    return TrustedHorizon(10, steps, searching)


def test_trust_begins_with_four_strides() -> None:
    assert TrustedHorizon.initial(10) == trust(40.0)


def test_accepted_jumps_at_the_edge_double_it_until_the_cap() -> None:
    now, seen = TrustedHorizon.initial(10), []
    for _ in range(8):
        now = now.after(now.steps, accepted=True)
        seen.append(now.steps)
    assert seen == [80, 160, 320, 640, 1280, 2560, 2560, 2560]


def test_a_longer_accepted_jump_is_evidence_for_itself() -> None:
    assert trust(40.0).after(160.0, accepted=True) == trust(320.0)
    assert trust(40.0, searching=False).after(160.0, accepted=True).steps == 200


def test_an_accepted_jump_well_inside_changes_nothing() -> None:
    assert trust(400.0).after(100.0, accepted=True) == trust(400.0)


def test_a_rejected_jump_halves_it_and_ends_the_search() -> None:
    assert trust(400.0).after(400.0, accepted=False) == trust(200.0, searching=False)
    assert trust(200.0, searching=False).after(200.0, accepted=True).steps == 250


def test_a_rejected_jump_a_little_beyond_lowers_it_less() -> None:
    assert trust(400.0).after(600.0, accepted=False).steps == 300


def test_a_rejected_jump_far_beyond_says_nothing() -> None:
    assert trust(40.0).after(80.0, accepted=False) == trust(40.0)
    assert trust(40.0).after(2560.0, accepted=False) == trust(40.0)


def test_a_rejected_short_jump_brings_it_below_that_one() -> None:
    assert trust(2560.0).after(40.0, accepted=False).steps == 20
    assert trust(2560.0).after(3.0, accepted=False).steps == 10


def test_it_settles_where_most_jumps_are_accepted() -> None:
    """Where jumps longer than 300 steps fail: never far off, and three in four are accepted."""
    now, accepted, seen = TrustedHorizon.initial(10), 0, []
    for _ in range(200):
        good = now.steps <= 300
        accepted += good
        now = now.after(now.steps, accepted=good)
        seen.append(now.steps)
    assert accepted >= 140
    assert 140 <= min(seen[20:]) <= max(seen[20:]) <= 375


@pytest.mark.parametrize("horizon", [0.0, -1.0, NAN, INF])
def test_an_outcome_without_a_horizon_is_refused(horizon: float) -> None:
    with pytest.raises(ValueError, match="horizon"):
        TrustedHorizon.initial(10).after(horizon, accepted=True)


@pytest.mark.parametrize(("stride", "steps"), [(0, 4.0), (10, 9.0), (10, 2561.0), (10, NAN)])
def test_trust_out_of_bounds_is_refused(stride: int, steps: float) -> None:
    with pytest.raises(ValueError, match="must"):
        TrustedHorizon(stride, steps)
