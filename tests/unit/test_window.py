"""The window: what it stores, what it says of it, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import koopcast.window.gram as gram_module
import koopcast.window.long as long_module
from koopcast.blocks import BlockGroup, BlockPlan
from koopcast.partition import plan_blocks
from koopcast.window import Window
from koopcast.window.boxes import Box
from koopcast.window.gram import GroupGram, Incoming
from koopcast.wire import TensorSpec
from planned import group_values

SPECS = {
    "fc.weight": TensorSpec("float32", (3, 40)),
    "fc.bias": TensorSpec("float32", (3,)),
    "up.weight": TensorSpec("float32", (2, 5, 3), node_axis=1),
    "up.bias": TensorSpec("float32", (5,)),
    "scale": TensorSpec("float32", (7,)),
    "shift": TensorSpec("float32", (7,)),
    "gain": TensorSpec("float32", ()),
    "offset": TensorSpec("float32", (7,)),
}
PLANS = {
    "network": plan_blocks(SPECS, "network"),
    "tensor": plan_blocks(SPECS, "tensor"),
    "node": plan_blocks(SPECS, "node"),
    "quasi_node": plan_blocks(SPECS, "quasi_node", 6),
    "weight": plan_blocks(SPECS, "weight"),
}
SIZE = PLANS["network"].elements
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def window(
    plan: str | BlockPlan = "tensor",
    length: int = 4,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    *,
    with_state: bool = True,
) -> Window:
    found = PLANS[plan] if isinstance(plan, str) else plan
    return Window(found, length, snapshot_dtype=dtype, window_dtype=stored or dtype, with_state=with_state)


def one_block(size: int) -> BlockPlan:
    return plan_blocks({"w": TensorSpec("float32", (size,))}, "network")


def snapshots(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, size), generator=generator, dtype=torch.float64)


def push(target: Window, rows: Iterable[torch.Tensor]) -> None:
    for row in rows:
        target.spare.copy_(row)
        target.publish()


def indices(group: BlockGroup, elements: int) -> npt.NDArray[Any]:
    """(blocks, size): where the elements of each block are, by numpy."""
    return group_values(group, np.arange(elements))


def check(
    target: Window,
    plan: BlockPlan,
    held: torch.Tensor,
    stored: torch.dtype = torch.float32,
    *,
    tolerance: float = 1e-12,
) -> None:
    """All that the window says is what numpy says of the snapshots held, in float64."""
    assert target.snapshots_held == len(held)
    velocities = held.double().diff(dim=0).to(stored).double().numpy()
    last = held[-1].double().numpy()
    for number, group in enumerate(plan.groups):
        own = indices(group, plan.elements)
        v, w = velocities[:, own].transpose(1, 0, 2), last[own]
        vectors = target.vectors(number, 0, group.count)
        assert (vectors.velocities.dtype, vectors.velocities.device.type) == (torch.float64, "cpu")
        np.testing.assert_array_equal(vectors.velocities.numpy(), v)
        np.testing.assert_array_equal(vectors.last.numpy(), w)
        products = target.products(number)
        assert (products is not None) == target.is_dual(number) == (group.size > target.length - 1)
        if products is not None:
            pairs = (
                (products.velocity_gram, np.einsum("bis,bjs->bij", v, v)),
                (products.velocity_dot_last, np.einsum("bis,bs->bi", v, w)),
                (products.last_squared, np.einsum("bs,bs->b", w, w)),
            )
            for mine, true in pairs:
                assert mine is not None
                assert (mine.dtype, mine.device.type) == (torch.float64, "cpu")
                np.testing.assert_allclose(mine.numpy(), true, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[None, 1, 11], ids=["whole", "by-element", "by-eleven"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the groups into boxes of so many elements."""
    if request.param:
        monkeypatch.setattr(gram_module, "_ELEMENTS_ON_CPU", request.param)


@pytest.mark.parametrize("partition", PLANS)
def test_what_a_window_says_from_the_first_snapshot_to_beyond_the_last_slot(
    partition: str, cut: None
) -> None:
    target, rows = window(partition), snapshots(9).float()
    for count in range(1, 10):
        push(target, rows[count - 1 : count])
        check(target, PLANS[partition], rows[max(0, count - 4) : count])
        assert torch.equal(target.last, rows[count - 1])


def test_the_partitions_have_blocks_of_both_kinds() -> None:
    duals = {
        name: {window(name).is_dual(number) for number in range(len(plan.groups))}
        for name, plan in PLANS.items()
    }
    assert duals["network"] == {True}
    assert duals["weight"] == {False}
    assert duals["tensor"] == duals["node"] == duals["quasi_node"] == {True, False}


def test_an_empty_window_says_so() -> None:
    target = window("network")
    products, vectors = target.products(0), target.vectors(0, 0, 1)
    assert products is not None
    assert products.velocity_dot_last is not None
    assert (products.velocity_gram.shape, products.velocity_dot_last.shape) == ((1, 0, 0), (1, 0))
    assert products.last_squared.tolist() == [0.0]
    assert vectors.velocities.shape == (1, 0, SIZE)
    assert not vectors.last.any()
    with pytest.raises(ValueError, match="2 snapshots, not 0"):
        target.read_last_velocity(0, 3)


def test_the_shortest_window_holds_one_velocity() -> None:
    target, rows = window(length=2), snapshots(5).float()
    push(target, rows)
    check(target, PLANS["tensor"], rows[-2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: torch.dtype) -> None:
    target, rows = window("node", dtype=dtype), snapshots(6).to(dtype)
    push(target, rows)
    check(target, PLANS["node"], rows[-4:], dtype)


def test_blocks_are_read_in_any_range() -> None:
    plan = PLANS["quasi_node"]
    target, rows = window("quasi_node"), snapshots(6).float()
    push(target, rows)
    for number, group in enumerate(plan.groups):
        vectors, products = target.vectors(number, 0, group.count), target.products(number)
        for first in range(group.count + 1):
            for stop in range(first, group.count + 1):
                some = target.vectors(number, first, stop)
                assert torch.equal(some.velocities, vectors.velocities[first:stop])
                assert torch.equal(some.last, vectors.last[first:stop])
                part = target.products(number, first, stop)
                assert (part is None) == (products is None)
                if part is not None and products is not None:
                    assert torch.equal(part.velocity_gram, products.velocity_gram[first:stop])


@pytest.mark.parametrize("length", [2, 3, 4])
def test_the_last_velocity_as_stored(length: int) -> None:
    target, rows = window(length=length, stored=torch.bfloat16), snapshots(7).float()
    for before, row in zip([None, *rows], rows, strict=False):
        push(target, row[None])
        if before is not None:
            found = target.read_last_velocity(5, 60)
            assert torch.equal(found, (row - before)[5:60].bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("partition", PLANS)
def test_combinations(partition: str, dtype: torch.dtype, cut: None) -> None:
    plan, target, rows = PLANS[partition], window(partition, dtype=dtype), snapshots(7).to(dtype)
    push(target, rows)
    velocities = rows[-4:].double().diff(dim=0).to(dtype).double()
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    for number, group in enumerate(plan.groups):
        own = torch.from_numpy(indices(group, SIZE))
        others = torch.ones(SIZE, dtype=torch.bool)
        others[own] = False
        coefficients, last = snapshots(group.count, 3, seed=1), snapshots(1, group.count, seed=2)[0]
        moved = torch.einsum("bj,jbs->bs", coefficients, velocities[:, own])
        wanted = moved + last[:, None] * rows[-1].double()[own]
        for out in (torch.full((SIZE,), torch.nan, dtype=kind) for kind in DTYPES):
            rounding = tolerance + float(torch.finfo(out.dtype).eps)
            target.combine(number, coefficients, last, out)
            torch.testing.assert_close(out[own].double(), wanted, rtol=rounding, atol=rounding)
            target.combine(number, coefficients, None, out)
            torch.testing.assert_close(out[own].double(), moved, rtol=rounding, atol=rounding)
            assert out[others].isnan().all()


@pytest.mark.parametrize("partition", PLANS)
def test_scattered_values_are_the_vectors_of_their_blocks(partition: str) -> None:
    plan, target = PLANS[partition], window(partition)
    for number, group in enumerate(plan.groups):
        first = group.count // 3
        own = torch.from_numpy(indices(group, SIZE))[first:]
        values = snapshots(group.count - first, group.size)
        out = torch.full((SIZE,), torch.nan)
        target.scatter(number, first, group.count, values, out)
        assert torch.equal(out[own], values.float())
        assert int(out.isnan().sum()) == SIZE - own.numel()


def test_long_rows_of_blocks_are_combined_alike() -> None:
    # Batched matrix products from 32 neighbouring elements on; shorter rows, and columns, otherwise.
    specs = {f"{width}.weight": TensorSpec("float32", (6, width)) for width in (31, 32, 33)}
    specs["columns"] = TensorSpec("float32", (40, 6), node_axis=1)
    plan = plan_blocks(specs, "node")
    target, rows = window(plan, 5), snapshots(5, plan.elements).float()
    push(target, rows)
    out = torch.empty(plan.elements)
    for number, group in enumerate(plan.groups):
        target.combine(number, torch.ones(group.count, 4, dtype=torch.float64), None, out)
    torch.testing.assert_close(out, rows[-1] - rows[0])


def test_blocks_with_zero_coefficients_give_exact_zeros_and_are_not_read() -> None:
    plan = plan_blocks({"a": TensorSpec("float32", (600, 200))}, "node")
    target = window(plan)
    push(target, snapshots(4, plan.elements))
    target._slots.velocities[:, : 100 * 200] = torch.nan
    coefficients = torch.zeros(600, 3, dtype=torch.float64)
    coefficients[599] = 1.0
    out = torch.full((plan.elements,), torch.nan)
    target.combine(0, coefficients, None, out)
    assert (out[: 599 * 200] == 0).all()
    assert (out[599 * 200 :] != 0).all()


def test_half_precision_keeps_differences() -> None:
    # Weights near 1 moving by 1e-3: bfloat16 weights would not even see it.
    start, velocity = torch.ones(1000, dtype=torch.float64), snapshots(1, 1000)[0] * 1e-3
    target = window(one_block(1000), dtype=torch.float32, stored=torch.bfloat16)
    rows = torch.stack([start + i * velocity for i in range(4)])
    push(target, rows)
    out = torch.empty(1000)
    target.combine(0, torch.ones(1, 3, dtype=torch.float64), None, out)
    true = 3 * velocity
    assert float((out.double() - true).norm() / true.norm()) < 3e-3
    for said in (target.products(0), target.vectors(0, 0, 1)):
        assert said is not None
        assert (said.window_epsilon, said.snapshot_epsilon) == (2.0**-7, 2.0**-23)
    check(target, one_block(1000), rows.float(), torch.bfloat16)


def test_differences_too_large_for_the_window_stay_finite() -> None:
    target = window(one_block(3), 3, torch.float32, torch.float16)
    push(target, torch.tensor([[1e30, -1e30, 1.0], [-1e30, 1e30, 2.0]]))
    products = target.products(0)
    assert products is not None
    assert products.velocity_gram.isfinite().all()
    for dtype in (torch.float32, torch.float64):
        wide, limit = window(one_block(1), 3, dtype), torch.finfo(dtype).max
        push(wide, torch.tensor([[0.9 * limit], [-0.9 * limit]], dtype=dtype))
        out = torch.empty(1, dtype=dtype)
        wide.combine(0, torch.ones(1, 1, dtype=torch.float64), None, out)
        assert out.item() == -limit


def walk(kind: str, count: int, size: int) -> torch.Tensor:
    """(count, size) float32 snapshots near 0 whose differences are of a kind."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((count, size), generator=generator)
    if kind == "one sign":
        return noise.abs().cumsum(0)
    if kind == "alike":
        return 0.1 + 0.01 * torch.arange(1.0, count + 1)[:, None].square() * torch.ones(size)
    if kind == "spread":  # gradients: sizes over some decades, each element decays at a pace of its own
        start = noise[0] * torch.exp(2 * torch.randn(size, generator=generator))
        pace = torch.exp(-0.3 * torch.rand(size, generator=generator))
        return 1e-3 * (start * pace ** torch.arange(count)[:, None] + 0.02 * noise)
    return noise


@pytest.mark.parametrize(
    ("kind", "bound"), [("both signs", 3e-8), ("one sign", 3e-8), ("spread", 1e-7), ("alike", 5e-7)]
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_float32_products_of_long_blocks(kind: str, bound: float, stored: torch.dtype) -> None:
    size = gram_module._FLOAT32_FROM
    rows = walk(kind, 8, size)
    rough = window(one_block(size), 8, stored=stored, with_state=False)
    exact = window(one_block(size), 8, stored=stored)
    for target in (rough, exact):
        push(target, rows)
    mine, true = rough.products(0), exact.products(0)
    assert mine is not None
    assert true is not None
    assert mine.velocity_dot_last is None
    lengths = true.velocity_gram.diagonal(dim1=1, dim2=2).sqrt()
    error = (mine.velocity_gram - true.velocity_gram) / (lengths[:, :, None] * lengths[:, None, :])
    assert float(error.abs().max()) < bound
    assert error.any() or stored == torch.bfloat16, "this is not float32's work"
    torch.testing.assert_close(mine.last_squared, true.last_squared, rtol=1e-6, atol=0)
    check(exact, one_block(size), rows, stored, tolerance=1e-11)


def test_short_blocks_and_wide_numbers_are_exact_without_state_too() -> None:
    for size, dtype in ((gram_module._FLOAT32_FROM - 1, torch.float32), (1 << 17, torch.float64)):
        rows = snapshots(4, size).to(dtype)
        target = window(one_block(size), dtype=dtype, with_state=False)
        push(target, rows)
        velocities = rows.double().diff(dim=0).to(dtype).double()
        products = target.products(0)
        assert products is not None
        torch.testing.assert_close(
            products.velocity_gram[0], velocities @ velocities.T, rtol=1e-12, atol=1e-9
        )


@pytest.mark.parametrize("scale", [0.0, 1e-22, 1e22, 1e30])
def test_the_range_of_float32_is_no_limit(scale: float) -> None:
    size = gram_module._FLOAT32_FROM
    rows = (snapshots(5, size) * scale).float()
    target = window(one_block(size), with_state=False)
    push(target, rows)
    velocities = rows[-4:].diff(dim=0).double()
    products = target.products(0)
    assert products is not None
    torch.testing.assert_close(products.velocity_gram[0], velocities @ velocities.T, rtol=1e-10, atol=0)
    torch.testing.assert_close(products.last_squared[0], rows[-1].double().square().sum(), rtol=1e-10, atol=0)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> int:
    """Three threads, and boxes so short that each has several."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(long_module, "_SHORTEST_BOX", 10_000)
    return 3


@pytest.mark.parametrize("size", [1 << 17, (1 << 17) + 77])
def test_threads_share_the_work(threads: int, size: int) -> None:
    # Small whole numbers: float32 makes no error.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-3, 4, (7, size), generator=generator).float()
    target = window(one_block(size), with_state=False)
    assert len(target._boxes[0]) > threads
    for count in range(1, 8):
        push(target, rows[count - 1 : count])
        held = rows[max(0, count - 4) : count].double()
        velocities, products = held.diff(dim=0), target.products(0)
        assert products is not None
        assert torch.equal(products.velocity_gram[0], velocities @ velocities.T)
        assert products.last_squared[0] == held[-1].square().sum()
        assert torch.equal(target.vectors(0, 0, 1).velocities[0], velocities)


def test_a_thread_that_fails_leaves_a_window_that_works(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = gram_module._FLOAT32_FROM
    rows, target = snapshots(6, size).float(), window(one_block(size), with_state=False)
    push(target, rows[:5])
    before, sums = target.vectors(0, 0, 1), long_module._sums

    def fail(new: Incoming, box: Box) -> Any:
        if box.of(torch.arange(size))[0, 0] > size // 2:
            raise MemoryError
        return sums(new, box)

    with monkeypatch.context() as patch:
        patch.setattr(long_module, "_sums", fail)
        target.spare.copy_(rows[5])
        with pytest.raises(MemoryError):
            target.publish()
    assert torch.equal(target.vectors(0, 0, 1).velocities, before.velocities[:, 1:])
    target.publish()
    velocities = rows[-3:].diff(dim=0).double()
    products = target.products(0)
    assert products is not None
    torch.testing.assert_close(
        products.velocity_gram[0, 1:, 1:], velocities @ velocities.T, rtol=1e-7, atol=1e-2
    )


def test_a_broken_upload_costs_nothing() -> None:
    target, rows = window(), snapshots(5).float()
    push(target, rows)
    target.spare.fill_(torch.nan)
    check(target, PLANS["tensor"], rows[-4:])
    assert torch.equal(target.last, rows[4])
    more = snapshots(1, seed=9).float()
    push(target, more)
    check(target, PLANS["tensor"], torch.cat([rows[-3:], more]))


@pytest.mark.parametrize("held", [1, 2, 4, 6])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_publish_that_fails_leaves_a_window_that_works(
    monkeypatch: pytest.MonkeyPatch, held: int, calls: int
) -> None:
    target, rows, plan = window("node"), snapshots(8).float(), PLANS["node"]
    push(target, rows[:held])
    add, left = GroupGram._add, iter(range(calls))

    def fail(gram: GroupGram, *arguments: Any) -> None:
        if next(left, None) is None:
            raise MemoryError
        add(gram, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GroupGram, "_add", fail)
        target.spare.copy_(rows[held])
        with pytest.raises(MemoryError):
            target.publish()
    kept = min(held, 3)  # a full window of 4 has lost its oldest
    check(target, plan, rows[held - kept : held])
    out = torch.empty(SIZE)
    for number, group in enumerate(plan.groups):
        target.combine(number, torch.ones(group.count, kept - 1, dtype=torch.float64), None, out)
    torch.testing.assert_close(out, rows[held - 1] - rows[held - kept])
    target.publish()  # the snapshot is still in the spare slot
    check(target, plan, rows[held - kept : held + 1])


def test_clear_forgets() -> None:
    target, rows, plan = window(), snapshots(9).float(), PLANS["tensor"]
    push(target, rows[:6])
    target.clear()
    assert target.snapshots_held == 0
    products = target.products(0)
    assert products is not None
    assert products.velocity_gram.shape == (1, 0, 0)
    assert products.last_squared.tolist() == [0.0]
    for count in range(1, 4):
        push(target, rows[5 + count : 6 + count])
        check(target, plan, rows[6 : 6 + count])


def test_what_was_said_stays_said() -> None:
    target, rows = window("network", 5), snapshots(6).float()
    push(target, rows[:4])
    said = (target.products(0), target.vectors(0, 0, 1))
    kept = [value.clone() for answer in said for value in answer or () if isinstance(value, torch.Tensor)]
    push(target, rows[4:])
    now = [value for answer in said for value in answer or () if isinstance(value, torch.Tensor)]
    assert len(now) == 5
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


def tensors_of(holder: object) -> Iterable[torch.Tensor]:
    """All tensors that an object of the window package holds."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, (list, tuple)):
        for each in holder:
            yield from tensors_of(each)
    elif type(holder).__module__.startswith("koopcast.window") and hasattr(holder, "__dict__"):
        yield from tensors_of(list(vars(holder).values()))


@pytest.mark.parametrize("partition", PLANS)
@pytest.mark.parametrize("with_state", [True, False])
def test_memory_is_what_was_said(partition: str, with_state: bool) -> None:
    target = window(partition, 6, stored=torch.bfloat16, with_state=with_state)
    said = Window.bytes_needed(
        PLANS[partition],
        6,
        snapshot_dtype=torch.float32,
        window_dtype=torch.bfloat16,
        with_state=with_state,
    )
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors_of(target)
    }
    assert target.nbytes == said == sum(tensors.values())
    row = -(-SIZE // 32) * 32 * 2  # rows start with a line of the cache
    duals = sum(group.count for group in PLANS[partition].groups if group.size > 5)
    assert said == 5 * row + SIZE * 8 + duals * 8 * (25 + 2 + (10 if with_state else 0))


_PEAK = """
import resource, sys, torch
from koopcast.partition import plan_blocks
from koopcast.window import Window
from koopcast.wire import TensorSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def use(inputs):
    plan = plan_blocks({{"w": TensorSpec("float32", (2048, inputs))}}, "{partition}")
    window = Window(plan, 10, snapshot_dtype=torch.float32, window_dtype=torch.{stored}, with_state={state})
    out = torch.ones(plan.elements)
    for index in range(11):
        window.spare.fill_(index * index)
        window.publish()
    count = plan.groups[0].count
    window.combine(0, torch.ones(count, 9, dtype=torch.float64), torch.ones(count, dtype=torch.float64), out)
    return window.nbytes + out.nbytes

use(16)
before = peak()
held = use(1024)
print(peak() - before - held)
"""


@pytest.mark.parametrize(
    ("partition", "stored", "state"),
    [("network", "float32", False), ("network", "bfloat16", True), ("node", "float32", False)],
)
def test_publish_and_combine_need_little_beside_the_window(partition: str, stored: str, state: bool) -> None:
    program = _PEAK.format(partition=partition, stored=stored, state=state)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert int(done.stdout) < 64 << 20  # a copy of all velocities would be 72 MiB at least


def test_spare_and_last_are_never_the_same_array() -> None:
    target, addresses = window(), set()
    for row in snapshots(5):
        assert target.spare.data_ptr() != target.last.data_ptr()
        addresses |= {target.spare.data_ptr(), target.last.data_ptr()}
        push(target, row[None])
    assert len(addresses) == 2


@pytest.mark.parametrize(
    ("size", "length", "dtype", "message"),
    [(0, 3, torch.float32, "element"), (5, 1, torch.float32, "at least 2"), (5, 3, torch.int32, "floating")],
)
def test_windows_that_cannot_be(size: int, length: int, dtype: torch.dtype, message: str) -> None:
    plan = one_block(size) if size else BlockPlan((), 0, 0, (), ())
    with pytest.raises(ValueError, match=message):
        window(plan, length, dtype, torch.float32)
    with pytest.raises(ValueError, match=message):
        Window.bytes_needed(plan, length, snapshot_dtype=dtype, window_dtype=torch.float32)


def test_questions_of_a_wrong_shape_are_refused() -> None:
    target = window("node")
    push(target, snapshots(3))
    good, out = torch.ones(3, 2, dtype=torch.float64), torch.empty(SIZE)
    with pytest.raises(ValueError, match="velocity_coefficients"):
        target.combine(0, torch.ones(3, 3, dtype=torch.float64), None, out)
    with pytest.raises(ValueError, match="last_coefficients"):
        target.combine(0, good, torch.ones(4, dtype=torch.float64), out)
    values = torch.ones(2, 41)
    for bad in (
        torch.empty(SIZE - 1),
        torch.empty(SIZE, dtype=torch.int64),
        torch.empty(SIZE, device="meta"),
    ):
        with pytest.raises(ValueError, match="out"):
            target.combine(0, good, None, bad)
        with pytest.raises(ValueError, match="out"):
            target.scatter(0, 0, 2, values, bad)
    with pytest.raises(ValueError, match="values"):
        target.scatter(0, 0, 3, values, out)
    for first, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(ValueError, match="blocks"):
            target.vectors(0, first, stop)
        with pytest.raises(ValueError, match="blocks"):
            target.products(0, first, stop)
        with pytest.raises(ValueError, match="blocks"):
            target.scatter(0, first, stop, values, out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("partition", ["network", "tensor", "node", "weight"])
@pytest.mark.parametrize("with_state", [True, False])
def test_a_device_says_what_the_cpu_says(partition: str, with_state: bool) -> None:
    specs = {**SPECS, "long.weight": TensorSpec("float32", (300, 700))}
    plan = plan_blocks(specs, partition)
    rows = snapshots(7, plan.elements).float()
    windows = [
        Window(
            plan,
            5,
            snapshot_dtype=torch.float32,
            window_dtype=torch.float32,
            with_state=with_state,
            device=device,
        )
        for device in ("cpu", "cuda")
    ]
    answers = [torch.empty(plan.elements, device=target.device) for target in windows]
    for target, out in zip(windows, answers, strict=True):
        push(target, rows)
        for number, group in enumerate(plan.groups):
            last = snapshots(1, group.count, seed=2)[0]
            target.combine(number, snapshots(group.count, 4, seed=1), last, out)
    torch.testing.assert_close(answers[1].cpu(), answers[0], rtol=1e-5, atol=1e-5)
    for number, group in enumerate(plan.groups):
        on_cpu, on_device = (target.vectors(number, 0, group.count) for target in windows)
        assert torch.equal(on_device.velocities, on_cpu.velocities)
        mine, true = windows[1].products(number), windows[0].products(number)
        assert (mine is None) == (true is None)
        if mine is not None and true is not None:
            rough = group.size >= gram_module._FLOAT32_FROM and not with_state
            scale = float(true.velocity_gram.abs().max())
            tolerance = (1e-7 if rough else 1e-12) * scale
            torch.testing.assert_close(mine.velocity_gram, true.velocity_gram, rtol=0, atol=tolerance)
