"""How much refining may do and hold, by the memory that the parameters need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from koopcast.hook.refined_attempts import RefiningPlan, plan_refining
from koopcast.hook.regime import Regime
from koopcast.hook.selection import Selection

MIB = 1 << 20


def planned(
    *sizes: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,), **more: Any
) -> RefiningPlan | None:
    """The plan for parameters of these sizes, which take no memory here."""
    model = nn.Module()
    for index, size in enumerate(sizes):
        dtype = dtypes[index % len(dtypes)]
        model.register_parameter(f"p{index}", nn.Parameter(torch.empty(size, dtype=dtype, device="meta")))
    settings = {"refine": None, "window_steps": 100, "halting": True, "possible": True, **more}
    refine = settings.pop("refine")
    return plan_refining(refine, Selection(model, None, averaged=False), Regime(), **settings)


@pytest.mark.parametrize(
    ("elements", "dtype", "limit", "pairs"),
    [
        (1000, torch.float32, 100, 30),
        (256 * MIB // 4 // 69, torch.float32, 100, 30),
        (256 * MIB // 4 // 67, torch.float32, 100, 29),
        (256 * MIB // 4 // 19, torch.float32, 100, 5),
        (256 * MIB // 4 // 19 + 1, torch.float32, 0, 4),
        (256 * MIB // 4 // 19, torch.bfloat16, 100, 5),  # it is calculated in float32
        (256 * MIB // 8 // 19, torch.float64, 100, 5),
        (256 * MIB // 8 // 19 + 1, torch.float64, 0, 4),
        (1000 * MIB, torch.float32, 0, 1),
    ],
)
def test_memory_is_bounded(elements: int, dtype: torch.dtype, limit: int, pairs: int) -> None:
    plan = planned(elements // 2, elements - elements // 2, dtypes=(dtype,))
    assert plan is not None
    assert (plan.limit, plan.pairs) == (limit, pairs)


@pytest.mark.parametrize(
    ("more", "limit"),
    [({"refine": 7}, 7), ({"refine": 0}, 0), ({"possible": False, "refine": 7}, 0)],
    ids=str,
)
def test_what_is_asked_for(more: dict[str, Any], limit: int) -> None:
    plan = planned(100, **more)
    assert plan is not None
    assert plan.limit == limit


def test_gradients_of_several_types_are_not_looked_at() -> None:
    assert planned(100, 100, dtypes=(torch.float32, torch.bfloat16)) is None
