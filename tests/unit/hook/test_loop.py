"""The loop that is attached to: learning rates, wrappers, and steps that were none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from koopcast.hook.loop import RateWatch, is_break, unwrapped, was_skipped
from koopcast.hook.stats import RateChange


def optimizer(*rates: Any) -> torch.optim.SGD:
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.1)


def test_rates_are_watched_group_by_group() -> None:
    stepping, watch = optimizer(0.1, 0.2), RateWatch()
    assert watch.step(stepping, 1) is None  # nothing to compare with
    assert watch.rate == 0.1
    assert watch.step(stepping, 2) is None
    stepping.param_groups[0]["lr"] = 0.09
    stepping.param_groups[1]["lr"] = 0.05
    assert watch.step(stepping, 3) == RateChange(3, 1, 0.2, 0.05)  # the larger one
    stepping.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 7.0})
    assert watch.step(stepping, 4) is None
    stepping.param_groups[2]["lr"] = 3.0
    assert watch.step(stepping, 5) == RateChange(5, 2, 7.0, 3.0)


def test_rates_in_tensors_are_read_on_the_cpu_and_left_elsewhere() -> None:
    stepping, watch = optimizer(torch.tensor(0.1), 0.5), RateWatch()
    watch.step(stepping, 1)
    assert watch.rate == pytest.approx(0.1)
    stepping.param_groups[0]["lr"].fill_(0.2)
    change = watch.step(stepping, 2)
    assert change is not None
    assert change.after == pytest.approx(0.2)
    stepping.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    assert watch.step(stepping, 3) is None
    assert watch.rate is None


@pytest.mark.parametrize(
    ("before", "after", "breaks"),
    [
        (0.1, 0.01, True),
        (0.1, 0.05, True),
        (0.1, 0.06, False),
        (0.1, 0.19, False),
        (0.1, 0.2, True),
        (0.0, 0.1, True),
        (0.1, 0.0, True),
    ],
)
def test_a_factor_of_two_is_a_break(before: float, after: float, *, breaks: bool) -> None:
    assert is_break(RateChange(1, 0, before, after)) is breaks


def test_a_warm_up_from_nothing_is_a_break_once() -> None:
    stepping, watch = optimizer(0.0), RateWatch()
    changes = []
    for step in range(1, 20):
        stepping.param_groups[0]["lr"] = 0.01 * (step - 1)
        change = watch.step(stepping, step)
        changes += [change.step] if change is not None and is_break(change) else []
    assert changes == [2, 3]  # 0 to 0.01 to 0.02: while nothing has been recorded yet


class Wrapper:
    """Like Accelerate's: gradients are synchronised on some micro-batches only."""

    gradient_state = object()

    def __init__(self, inside: Any) -> None:
        self.optimizer = inside


def test_only_accelerates_kind_of_wrapper_is_unwrapped() -> None:
    inside = optimizer(0.1)
    assert unwrapped(inside) is inside
    assert unwrapped(Wrapper(inside)) is inside
    nothing = Wrapper(None)
    assert unwrapped(nothing) is nothing


@pytest.mark.parametrize(("found", "skipped"), [(None, False), (0.0, False), (1.0, True), (math.nan, True)])
def test_a_fused_step_says_whether_it_was_one(found: float | None, *, skipped: bool) -> None:
    stepping = optimizer(0.1)
    if found is not None:
        stepping.found_inf = torch.tensor(found)  # type: ignore[attr-defined]  # as GradScaler does
    assert was_skipped(stepping) is skipped
