"""The window inside a trainer: its rows, its memory, whole or in parts, and the coefficients it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from koopcast.errors import ArgumentTypeError, ArgumentValueError, FailedPrecondition
from koopcast.gram import Coefficients, GramRow
from koopcast.operator import Operator
from koopcast.window.held import TrainerWindow
from koopcast.wire import TensorSpec

SPECS = {
    "fc.weight": TensorSpec("float32", (6, 10)),
    "fc.bias": TensorSpec("float32", (6,)),
    "scale": TensorSpec("float32", ()),
}
SIZE = 67


def snapshots(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, SIZE), generator=torch.Generator().manual_seed(seed))


def push(window: TrainerWindow, rows: torch.Tensor) -> list[GramRow]:
    found = []
    for step, row in enumerate(rows):
        window.spare.copy_(row)
        found.append(window.publish(step))
    return found


@pytest.mark.parametrize("window_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("partition", ["network", "tensor", "node", "weight"])
def test_rows_are_the_inner_products_of_what_is_held(
    partition: Any, observable: Any, window_dtype: str | None
) -> None:
    operator = Operator(partition=partition, observable=observable, window=5)
    window = TrainerWindow(SPECS, operator, window_dtype=window_dtype)
    weights = snapshots(8)
    stored = weights.diff(dim=0).to(torch.bfloat16 if window_dtype else torch.float32).double()
    for count, row in enumerate(push(window, weights), start=1):
        held = stored[max(0, count - 5) : count - 1]
        assert row.velocity.shape == (window.block_count, len(held))
        assert row.weight.shape == (window.block_count, len(held) if observable == "state" else 0)
        new = weights[count - 1].double()
        np.testing.assert_allclose(row.squared.sum(), new @ new, rtol=1e-12)
        if len(held):
            np.testing.assert_allclose(row.velocity.sum(0), held @ held[-1], rtol=1e-9, atol=1e-9)
        if len(held) and observable == "state":
            np.testing.assert_allclose(row.weight.sum(0), held @ new, rtol=1e-9, atol=1e-9)
    assert window.snapshots_held == 5


@pytest.mark.parametrize("partition", ["network", "tensor", "node", "weight"])
def test_its_memory_is_what_it_said(partition: Any) -> None:
    operator = Operator(partition=partition, window=5)
    assert TrainerWindow(SPECS, operator).nbytes == TrainerWindow.bytes_needed(SPECS, operator)


def test_displacements_are_combinations_of_what_is_held() -> None:
    window = TrainerWindow(SPECS, Operator(partition="tensor", window=4, observable="state"))
    weights = snapshots(6)
    push(window, weights)
    velocity, last = np.array([[1.0, 0.0, -2.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]), np.array([0.0, 2.0, 0.0])
    found = window.split(window.combine(Coefficients(5, velocity, last)))
    changes, newest = weights.diff(dim=0)[-3:], weights[-1]
    torch.testing.assert_close(found["fc.weight"], (changes[0] - 2 * changes[2])[:60].view(6, 10))
    torch.testing.assert_close(found["fc.bias"], (0.5 * changes.sum(0) + 2 * newest)[60:66])
    assert found["scale"].shape == ()
    assert found["scale"] == 0.0


def test_a_window_that_moved_refuses_the_coefficients_of_before() -> None:
    window = TrainerWindow(SPECS, Operator(window=3))
    rows = snapshots(5)
    push(window, rows[:4])
    ours, version = Coefficients(3, np.ones((1, 2))), window.version
    window.combine(ours)
    window.spare.copy_(rows[4])
    window.publish(4)
    assert window.version != version
    with pytest.raises(FailedPrecondition, match=r"at step 3 .* at step 4") as refused:
        window.combine(ours)
    assert refused.value.reason == "WINDOW_MOVED"
    window.combine(Coefficients(4, np.ones((1, 2))))
    with pytest.raises(FailedPrecondition, match="1 velocities"):
        window.combine(Coefficients(4, np.ones((1, 1))))
    window.clear()
    with pytest.raises(FailedPrecondition):
        window.combine(Coefficients(4, np.ones((1, 0))))


def test_the_first_snapshot_after_clearing_has_no_velocity() -> None:
    window = TrainerWindow(SPECS, Operator(window=3))
    push(window, snapshots(4))
    window.clear()
    assert window.snapshots_held == 0
    (row,) = push(window, snapshots(1))
    assert (row.velocity.shape, window.snapshots_held) == ((1, 0), 1)


def test_a_process_with_nothing_of_the_model_says_zeros() -> None:
    shard = {"fc.weight": (0, 10), "fc.bias": (0,), "scale": (0,)}
    window = TrainerWindow(SPECS, Operator(partition="tensor", window=3), shard=shard)
    assert (window.size, window.nbytes, window.block_count) == (0, 0, 3)
    for step in range(4):
        window.write({name: torch.empty(shape) for name, shape in shard.items()})
        row = window.publish(step)
        assert row.velocity.shape == (3, min(step, 2))
        assert not row.velocity.any()
        assert not row.squared.any()
    assert window.combine(Coefficients(3, np.ones((3, 2)))).shape == (0,)
    assert {name: view.shape for name, view in window.split(window.last).items()} == shard


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fc.bias": torch.zeros(6), "scale": torch.zeros(())}, "'fc.weight' is missing"),
        (
            {"fc.weight": torch.zeros(6, 10), "fc.bias": torch.zeros(1), "scale": torch.zeros(())},
            r"'fc.bias' is of shape \(1,\)",
        ),
    ],
    ids=["missing", "shape"],
)
def test_what_is_written_must_be_what_it_holds(given: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(ArgumentValueError, match=says):
        TrainerWindow(SPECS, Operator(window=3)).write(given)


@pytest.mark.parametrize(
    ("operator", "shard", "says"),
    [
        (Operator.preset("dogra-redman"), None, "needs them at the service"),
        (Operator(partition="node"), {name: spec.shape for name, spec in SPECS.items()}, "must be whole"),
        (
            Operator(partition="weight"),
            {name: spec.shape for name, spec in SPECS.items()},
            'snapshots="server"',
        ),
        (Operator(), {"fc.weight": (6, 10)}, "every tensor"),
    ],
    ids=["segment", "node", "weight", "incomplete"],
)
def test_what_cannot_stay_in_the_trainer_is_refused(operator: Operator, shard: Any, says: str) -> None:
    with pytest.raises(ArgumentValueError, match=says):
        TrainerWindow(SPECS, operator, shard=shard)


def test_too_many_blocks_are_refused_before_memory_is_taken() -> None:
    huge = {"w": TensorSpec("float32", (10_000_000,))}
    with pytest.raises(ArgumentValueError, match=r"Gram rows of .* MiB") as refused:
        TrainerWindow(huge, Operator(partition="weight"))
    assert refused.value.details["field"] == "partition"


GOOD = GramRow(np.ones((2, 3)), np.ones((2, 0)), np.ones(2))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (GramRow(np.full((2, 3), np.nan), GOOD.weight, GOOD.squared), ArgumentValueError),
        (GramRow(GOOD.velocity, GOOD.weight, np.array([1.0, np.inf])), ArgumentValueError),
        (GramRow(np.ones((1, 3)), GOOD.weight, GOOD.squared), ArgumentValueError),
        (GramRow(GOOD.velocity, np.ones((2, 2)), GOOD.squared), ArgumentValueError),
        (GramRow(GOOD.velocity, GOOD.weight, np.ones((2, 1))), ArgumentValueError),
        (GramRow([[1.0]], GOOD.weight, GOOD.squared), ArgumentTypeError),  # type: ignore[arg-type]
        (GramRow(np.ones((2, 3), np.int64), GOOD.weight, GOOD.squared), ArgumentTypeError),
    ],
    ids=["nan", "inf", "blocks", "weights", "squares", "list", "integers"],
)
def test_a_row_is_checked(row: GramRow, error: type[Exception]) -> None:
    assert GOOD.checked().nbytes == GOOD.nbytes
    with pytest.raises(error):
        row.checked()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("partition", ["network", "node"])
def test_on_a_gpu_and_in_pinned_memory(partition: Any) -> None:
    operator = Operator(partition=partition, observable="state", window=4)
    here, weights = TrainerWindow(SPECS, operator), snapshots(6)
    there = TrainerWindow(SPECS, operator, device="cuda")
    pinned = TrainerWindow(SPECS, operator, pinned=True)
    on_gpu = weights.cuda()
    for step in range(6):
        here.spare.copy_(weights[step])
        there.write(there.split(on_gpu[step]))
        pinned.write(pinned.split(on_gpu[step]), non_blocking=True)
        torch.cuda.synchronize()
        assert pinned.spare.is_pinned()
        rows = [window.publish(step) for window in (here, there, pinned)]
        for row in rows[1:]:
            np.testing.assert_allclose(row.velocity, rows[0].velocity, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(row.weight, rows[0].weight, rtol=1e-9, atol=1e-9)
    random = np.random.default_rng(0)
    ours = Coefficients(
        5, random.standard_normal((here.block_count, 3)), random.standard_normal(here.block_count)
    )
    torch.testing.assert_close(there.combine(ours).cpu(), here.combine(ours))
    torch.testing.assert_close(pinned.combine(ours), here.combine(ours))
