"""What the service keeps of a window that its trainer holds is what that window would tell it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from koopcast.errors import InternalError
from koopcast.gram import GramRow
from koopcast.operator import Operator
from koopcast.window import Window
from koopcast.window.held import TrainerWindow
from koopcast.wire import Layout, TensorSpec
from koopcast_server.held_grams import HeldGrams
from koopcast_server.window_shape import JobShape

SPECS = {
    "fc.weight": TensorSpec("float32", (5, 10)),
    "fc.bias": TensorSpec("float32", (5,)),
    "other": TensorSpec("float32", (3,)),
    "long": TensorSpec("float32", (700,)),
    "scale": TensorSpec("float32", ()),
}
LENGTH = 5


def shape_of(operator: Operator, holders: int = 1) -> JobShape:
    return JobShape.of(Layout(SPECS), operator, 1, "float32", holders=holders)


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("partition", ["network", "tensor", "node", "weight"])
def test_its_products_are_the_windows_at_every_snapshot(partition: Any, observable: Any) -> None:
    operator = Operator(partition=partition, observable=observable, window=LENGTH)
    shape, held = shape_of(operator), TrainerWindow(SPECS, operator)
    window = Window(
        shape.plan,
        LENGTH,
        snapshot_dtype=torch.float32,
        window_dtype=torch.float32,
        with_state=observable == "state",
        all_dual=True,
    )
    store = shape.new_grams()
    assert store.products(0).last_squared.tolist() == [0.0] * shape.plan.groups[0].count
    for step in range(2 * LENGTH + 1):
        snapshot = torch.randn(held.size, generator=torch.Generator().manual_seed(step))
        for target in (window, held):
            target.spare.copy_(snapshot)
        window.publish()
        store.take(held.publish(step))
        assert store.snapshots_held == window.snapshots_held
        for group in range(len(shape.plan.groups)):
            assert store.is_dual(group)
            found, expected = store.products(group), window.products(group)
            assert expected is not None
            for one, other in zip(found, expected, strict=True):
                if isinstance(one, torch.Tensor):
                    torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
                else:
                    assert one == other
    store.clear()
    assert store.snapshots_held == 0


def test_a_row_of_another_length_than_the_window_is_a_fault() -> None:
    held, grams = TrainerWindow(SPECS, Operator(window=LENGTH)), HeldGrams(shape_of(Operator(window=LENGTH)))
    rows: list[GramRow] = []
    for step in range(3):
        held.spare.fill_(float(step))
        rows.append(held.publish(step))
    grams.take([rows[0]], starts_segment=True)
    with pytest.raises(InternalError, match="2 velocities"):
        grams.take([rows[2]], starts_segment=False)
    grams.take([rows[1]], starts_segment=False)
    assert grams.snapshots_held == 2


def test_a_job_is_charged_for_its_products_and_for_rows_that_wait() -> None:
    operator = Operator(window=LENGTH, partition="tensor", observable="state")
    alone, many = shape_of(operator, 1).bytes_needed, shape_of(operator, 8).bytes_needed
    assert alone == 8 * 5 * (4 * 4 + 4 + 1)
    assert many == alone + LENGTH * 8 * (8 * 5 * (2 * 4 + 1))
