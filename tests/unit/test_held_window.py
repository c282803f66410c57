"""A snapshot counts when it is published; the work that it makes for the window may follow, and is never lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from koopcast.operator import Operator
from koopcast.wire import Layout, TensorSpec, checksum
from koopcast_server.answering import Question
from koopcast_server.held_window import HeldWindow
from koopcast_server.window_shape import JobShape

SIZE = 300


def held_window(window: Any = 4) -> HeldWindow:
    layout = Layout({"w": TensorSpec("float32", (SIZE,))})
    operator = Operator(window=window, rank=1, partition="tensor")
    return HeldWindow(JobShape.of(layout, operator, 1, "float32"), torch.device("cpu"))


def snapshot(index: int) -> np.ndarray:
    return (1.0 + 0.5**index * np.cos(np.arange(SIZE))).astype(np.float32)


def push(held: HeldWindow, index: int, *, starts_segment: bool = False) -> None:
    data = snapshot(index).tobytes()
    held.land(0, data, checksum(data))
    held.publish(starts_segment=starts_segment)


@pytest.mark.parametrize("window", [4, "segment"])
def test_snapshots_count_before_their_work_is_done(window: Any) -> None:
    held = held_window(window)
    for index in range(6):
        push(held, index, starts_segment=index == 0)
        counted = held.snapshots_held
        assert counted == (index + 1 if window == "segment" else min(index + 1, 4))
        assert not held.takes_at_once
        held.settle()
        assert held.takes_at_once
        assert held.snapshots_held == counted
    push(held, 0, starts_segment=True)
    assert held.snapshots_held == 1


def test_whatever_reads_the_window_does_the_work_first() -> None:
    held = held_window()
    for index in range(5):
        push(held, index, starts_segment=index == 0)
    np.testing.assert_array_equal(held.base().numpy(), snapshot(4))
    push(held, 5)
    ((answer,),) = held.solve([Operator(window=4, rank=1, partition="tensor")], Question((1.0,), 0.0))
    displacement = held.displacement(answer).numpy()
    np.testing.assert_allclose(displacement, snapshot(6) - snapshot(5), atol=1e-5)


def test_work_that_failed_is_done_by_the_next_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for scratch, say: the snapshot is not lost, and counts all the while."""
    held = held_window()
    for index in range(4):
        push(held, index, starts_segment=index == 0)
    with monkeypatch.context() as patch:
        patch.setattr(held._window, "publish", _no_memory)
        for _ in range(2):
            with pytest.raises(MemoryError):
                held.settle()
        with pytest.raises(MemoryError):
            push(held, 4)
    assert held.snapshots_held == 4
    push(held, 4)
    np.testing.assert_array_equal(held.base().numpy(), snapshot(4))
    ((answer,),) = held.solve([Operator(window=4, rank=1, partition="tensor")], Question((1.0,), 0.0))
    np.testing.assert_allclose(held.displacement(answer).numpy(), snapshot(5) - snapshot(4), atol=1e-5)


def test_a_window_that_was_freed_has_nothing_to_do() -> None:
    held = held_window()
    push(held, 0, starts_segment=True)
    held.free()
    held.settle()
    assert held.snapshots_held == 0


def _no_memory() -> None:
    raise MemoryError
