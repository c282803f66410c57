"""The whole segment: what is accumulated, what stays readable, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import koopcast.window.qr as qr_module
import koopcast.window.segment as segment_module
from koopcast.blocks import BlockGroup, BlockPlan, IndexedView, StridedView
from koopcast.partition import plan_blocks
from koopcast.window.qr import absorb
from koopcast.window.segment import LARGEST_BLOCK, Segment
from koopcast.window.views import gather, scatter
from koopcast.wire import TensorSpec
from planned import group_values
from segments import up_to_date

Observable = Literal["state", "velocity"]
OBSERVABLES: tuple[Observable, ...] = ("state", "velocity")

SPECS = {
    "fc.weight": TensorSpec("float32", (3, 4)),
    "fc.bias": TensorSpec("float32", (3,)),
    "up.weight": TensorSpec("float32", (2, 5, 2), node_axis=1),
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
    "quasi_node": plan_blocks(SPECS, "quasi_node", 2),
    "weight": plan_blocks(SPECS, "weight"),
}
SIZE = PLANS["network"].elements


def one_node(units: int, inputs: int) -> BlockPlan:
    """A layer's nodes, of inputs + 1 numbers each."""
    specs = {"weight": TensorSpec("float32", (units, inputs)), "bias": TensorSpec("float32", (units,))}
    return plan_blocks(specs, "node")


def walk(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """(count, size) float64: a random walk, so that both observables differ from snapshot to snapshot."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, size), generator=generator, dtype=torch.float64).cumsum(dim=0)


def push(target: Segment, rows: Iterable[Tensor]) -> None:
    for row in rows:
        target.spare.copy_(row)
        target.publish()


def indices(group: BlockGroup, elements: int) -> npt.NDArray[Any]:
    """(blocks, size): where the elements of each block are, by numpy."""
    return group_values(group, np.arange(elements))


def triangle(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """R of a QR decomposition, square, with a diagonal >= 0."""
    full = np.zeros((max(len(rows), rows.shape[1]), rows.shape[1]))
    full[: len(rows)] = rows
    factor = np.linalg.qr(full).R
    signed: npt.NDArray[Any] = factor * np.where(np.diagonal(factor) < 0, -1.0, 1.0)[:, None]
    return signed


def check(
    target: Segment,
    plan: BlockPlan,
    held: Tensor,
    observable: Observable,
    forgetting: float = 1.0,
    tail: int = 3,
) -> None:
    """Compare all that can be read with what follows from the snapshots themselves."""
    snapshots = held.double().numpy()
    vectors = np.diff(snapshots, axis=0) if observable == "velocity" else snapshots
    absorbed = max(0, len(vectors) - 1 - tail)
    for number, group in enumerate(plan.groups):
        found = up_to_date(target, number, 0, group.count)
        assert found.absorbed == absorbed
        assert found.factor.dtype == found.vectors.dtype == found.last.dtype == torch.float64
        places = indices(group, plan.elements)
        assert np.array_equal(found.last.numpy(), snapshots[-1][places] if len(held) else 0 * places)
        assert np.array_equal(found.vectors.numpy(), vectors[absorbed:, places].transpose(1, 0, 2))
        assert torch.equal(found.factor, found.factor.triu())
        for block, elements in enumerate(places):
            own = vectors[:, elements]
            rows = np.concatenate([own[:absorbed], own[1 : absorbed + 1]], axis=1)
            weights = np.sqrt(forgetting) ** np.arange(absorbed - 1, -1, -1.0)
            wanted = triangle(weights[:, None] * rows)
            factor = found.factor[block].numpy()
            scale = np.abs(wanted).max() + 1e-300
            np.testing.assert_allclose(factor.T @ factor, wanted.T @ wanted, rtol=0, atol=1e-13 * scale**2)
            if absorbed > 2 * len(elements):
                np.testing.assert_allclose(factor, wanted, rtol=0, atol=1e-11 * scale)


# ------------------------------------------------------------------------------------------------------ views


HANDMADE = BlockGroup(
    count=24,
    size=7,
    parts=(
        StridedView(1, (2, 3, 4), (120, 40, 10), (2, 3), (3, 1)),
        IndexedView(tuple(range(300, 300 + 48, 2)), 1),
    ),
    numbers=range(24),
)


@pytest.mark.parametrize(
    "group",
    [HANDMADE, *(group for plan in PLANS.values() for group in plan.groups)],
    ids=lambda group: group.size,
)
def test_any_range_of_blocks_is_read_and_written_in_place(group: BlockGroup) -> None:
    places = indices(group, 400)
    storage = torch.randn((3, 410), generator=torch.Generator().manual_seed(0))
    flat = storage[:, 5:405]
    for first, stop in itertools.combinations_with_replacement(range(group.count + 1), 2):
        out = torch.full((3, stop - first, group.size), torch.nan, dtype=torch.float64)
        gather(flat, group, first, stop, out)
        assert np.array_equal(out.numpy(), flat.double().numpy()[:, places[first:stop]])
        target, wanted = flat[1].clone(), flat[1].numpy().copy()
        values = torch.arange(float((stop - first) * group.size), dtype=torch.float64).view(-1, group.size)
        scatter(values, group, first, stop, target)
        wanted[places[first:stop]] = values.numpy()
        assert np.array_equal(target.numpy(), wanted)


# --------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("observable", OBSERVABLES)
@pytest.mark.parametrize("name", PLANS)
def test_every_partition_from_the_first_snapshot_on(name: str, observable: Observable) -> None:
    plan, rows = PLANS[name], walk(90).float()
    target = Segment(plan, observable=observable, snapshot_dtype=torch.float32, tail=3)
    for count in range(90):
        if count < 7 or count % 9 == 0:
            check(target, plan, rows[:count], observable)
        push(target, rows[count : count + 1])
        assert target.snapshots_held == count + 1
        assert torch.equal(target.last, rows[count])
    check(target, plan, rows, observable)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_snapshots_of_any_type_count_as_they_are(dtype: torch.dtype) -> None:
    rows = walk(60).to(dtype)
    target = Segment(PLANS["node"], observable="velocity", snapshot_dtype=dtype, tail=3)
    push(target, rows)
    check(target, PLANS["node"], rows, "velocity")
    assert up_to_date(target, 0, 0, 1).snapshot_epsilon == torch.finfo(dtype).eps


@pytest.mark.parametrize("tail", [0, 1, 20])
def test_tails(tail: int) -> None:
    rows = walk(70)
    for observable in OBSERVABLES:
        target = Segment(PLANS["node"], observable=observable, snapshot_dtype=torch.float64, tail=tail)
        for row in rows:
            push(target, row[None])
        check(target, PLANS["node"], rows, observable, tail=tail)


def test_the_tail_brings_the_factor_up_to_date() -> None:
    rows = walk(50)
    target = Segment(
        PLANS["tensor"], observable="velocity", forgetting=0.9, snapshot_dtype=torch.float64, tail=5
    )
    whole = Segment(
        PLANS["tensor"], observable="velocity", forgetting=0.9, snapshot_dtype=torch.float64, tail=0
    )
    push(target, rows)
    push(whole, rows)
    for number, group in enumerate(PLANS["tensor"].groups):
        found, wanted = up_to_date(target, number, 0, group.count), up_to_date(whole, number, 0, group.count)
        assert found.absorbed + 5 == wanted.absorbed == 48
        all_pairs = absorb(found.factor, found.vectors, 0.9)
        torch.testing.assert_close(
            all_pairs.mT @ all_pairs, wanted.factor.mT @ wanted.factor, rtol=0, atol=1e-10
        )


def test_forgetting_is_weighted_least_squares() -> None:
    plan, rows, forgetting = one_node(2, 2), walk(120, 6), 0.93
    target = Segment(plan, observable="state", forgetting=forgetting, snapshot_dtype=torch.float64, tail=3)
    push(target, rows)
    check(target, plan, rows, "state", forgetting)
    found = up_to_date(target, 0, 0, 2)
    solved = np.linalg.solve(found.factor[:, :3, :3].numpy(), found.factor[:, :3, 3:].numpy())
    for block, elements in enumerate(indices(plan.groups[0], plan.elements)):
        own = rows.numpy()[:-3, elements]
        weights = np.sqrt(forgetting ** np.arange(len(own) - 2, -1, -1.0))[:, None]
        wanted = np.linalg.lstsq(weights * own[:-1], weights * own[1:], rcond=None)[0]
        np.testing.assert_allclose(solved[block], wanted, rtol=1e-10, atol=1e-10)
        unweighted = np.linalg.lstsq(own[:-1], own[1:], rcond=None)[0]
        assert np.abs(wanted - unweighted).max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_node_operators_of_dogra_and_redman_over_ten_thousand_snapshots(dtype: torch.dtype) -> None:
    # Their case: nodes of 11 numbers. Kept from dying out by noise, and so mixed that the condition is 1e3.
    plan, count = one_node(2, 10), 10_000
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((11, 11)))[0]
    stretch = basis @ np.diag(np.logspace(0, -3, 11)) @ basis.T
    steps = 0.999 ** np.arange(1, 12)
    state, path = np.ones((2, 11)), np.empty((count, 2, 11))
    for index in range(count):
        path[index] = 3.0 * stretch[0] + state @ stretch.T
        state = steps * state + generator.standard_normal((2, 11)) * np.sqrt(1 - steps**2)
    rows = torch.empty((count, plan.elements), dtype=torch.float64)
    for block, elements in enumerate(indices(plan.groups[0], plan.elements)):
        rows[:, elements] = torch.from_numpy(path[:, block])
    rows = rows.to(dtype)
    target = Segment(plan, observable="state", snapshot_dtype=dtype)
    push(target, rows)
    found = up_to_date(target, 0, 0, 2)
    assert found.absorbed == count - 9
    factor = absorb(found.factor, found.vectors).numpy()
    for block, elements in enumerate(indices(plan.groups[0], plan.elements)):
        own = rows.double().numpy()[:, elements].T
        assert 300 < np.linalg.cond(own[:, :-1]) < 1e5
        textbook = own[:, 1:] @ np.linalg.pinv(own[:, :-1])
        operator = np.linalg.solve(factor[block, :11, :11], factor[block, :11, 11:]).T
        assert np.linalg.norm(operator - textbook) < 1e-9 * np.linalg.norm(textbook)
        ahead = np.linalg.matrix_power(operator, 2500) @ own[:, -1]
        wanted = np.linalg.matrix_power(textbook, 2500) @ own[:, -1]
        assert np.linalg.norm(ahead - wanted) < 1e-6 * np.linalg.norm(wanted)


# -------------------------------------------------------------------------------------------------- behaviour


def test_batches_take_turns_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows = one_node(40, 2), walk(200, 120)
    whole = Segment(plan, observable="velocity", snapshot_dtype=torch.float64)
    push(whole, rows)
    monkeypatch.setattr(qr_module, "_BATCH_BYTES_ON_CPU", 2048)
    cut = Segment(plan, observable="velocity", snapshot_dtype=torch.float64)
    calls = []

    def counted(factor: Tensor, vectors: Tensor, forgetting: float) -> Tensor:
        calls.append(factor.shape)
        return absorb(factor, vectors, forgetting)

    monkeypatch.setattr(segment_module, "absorb", counted)
    spent = []
    for row in rows:
        push(cut, row[None])
        spent.append(len(calls))
        calls.clear()
    batches, period = len(cut._batches), cut._period
    assert batches > period // 2
    assert max(spent) <= -(-batches // period)
    assert sum(spent[-period:]) == batches
    for first, stop in ((0, 40), (3, 4), (5, 39), (7, 7)):
        found, wanted = up_to_date(cut, 0, first, stop), up_to_date(whole, 0, first, stop)
        torch.testing.assert_close(found.factor, wanted.factor, rtol=1e-11, atol=1e-11)
        assert torch.equal(found.vectors, wanted.vectors)
        assert torch.equal(found.last, wanted.last)


def test_clear_forgets_all_but_the_spare_slot() -> None:
    plan, rows = PLANS["node"], walk(130)
    target = Segment(plan, observable="velocity", snapshot_dtype=torch.float64, tail=3)
    push(target, rows[:77])
    target.spare.copy_(rows[77])  # a segment's first snapshot lands before the old segment is forgotten
    target.clear()
    assert target.snapshots_held == 0
    check(target, plan, rows[:0], "velocity")
    target.publish()
    push(target, rows[78:])
    check(target, plan, rows[77:], "velocity")


def test_a_publish_that_fails_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows = PLANS["quasi_node"], walk(150)
    target = Segment(plan, observable="velocity", snapshot_dtype=torch.float64, tail=3)
    failures = 0
    for count, row in enumerate(rows):
        target.spare.copy_(row)

        def fails(factor: Tensor, *_: object) -> Tensor:
            raise MemoryError(factor.shape)

        with monkeypatch.context() as patch:
            patch.setattr(segment_module, "absorb", fails)
            try:
                target.publish()
            except MemoryError:
                failures += 1
                assert target.snapshots_held == count
                assert torch.equal(target.last, rows[count - 1])
            else:
                continue
        check(target, plan, rows[:count], "velocity")
        target.publish()
    assert failures > 2
    check(target, plan, rows, "velocity")


def test_reading_changes_nothing() -> None:
    plan, rows = PLANS["node"], walk(60)
    read, unread = (Segment(plan, observable="state", snapshot_dtype=torch.float64, tail=3) for _ in range(2))
    for row in rows:
        push(read, row[None])
        push(unread, row[None])
        found = up_to_date(read, 0, 0, 3)
        for tensor in (found.factor, found.vectors, found.last):
            tensor.fill_(torch.nan)
    assert all(map(torch.equal, up_to_date(read, 0, 0, 3)[:2], up_to_date(unread, 0, 0, 3)[:2]))


def test_scatter_writes_the_blocks_it_is_given_and_no_others() -> None:
    plan = PLANS["node"]
    target = Segment(plan, observable="state", snapshot_dtype=torch.float32)
    out, wanted = torch.zeros(SIZE), np.zeros(SIZE, np.float32)
    for number, group in enumerate(plan.groups):
        stop = max(1, group.count - 1)
        values = torch.arange(1.0, 1.0 + stop * group.size, dtype=torch.float64).view(stop, group.size)
        target.scatter(number, 0, stop, values, out)
        wanted[indices(group, SIZE)[:stop]] = values.numpy()
    assert np.array_equal(out.numpy(), wanted)
    for shape, first, stop in (((1, 5), 0, 2), ((4, 5), 0, 4), ((0, 5), 2, 1), ((2, 4), 0, 2)):
        with pytest.raises(ValueError, match="is not the shape of blocks"):
            target.scatter(0, first, stop, torch.zeros(shape), out)
    with pytest.raises(ValueError, match=f"{SIZE} floating numbers"):
        target.scatter(0, 0, 1, torch.zeros(1, 5), out[1:])


def test_the_last_velocity() -> None:
    rows = walk(3)
    target = Segment(PLANS["network"], observable="state", snapshot_dtype=torch.float64)
    for count in range(3):
        if count < 2:
            with pytest.raises(ValueError, match=f"2 snapshots, not {count}"):
                target.read_last_velocity(0, 1)
        push(target, rows[count : count + 1])
    assert torch.equal(target.read_last_velocity(3, 9), (rows[2] - rows[1])[3:9])


# ------------------------------------------------------------------------------------------- costs and refusals


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_stated_beforehand(dtype: torch.dtype) -> None:
    for plan in (*PLANS.values(), one_node(50, 300)):
        for observable in OBSERVABLES:
            target = Segment(plan, observable=observable, snapshot_dtype=dtype)
            stated = Segment.bytes_needed(plan, observable=observable, snapshot_dtype=dtype)
            factors = sum(group.count * 32 * group.size**2 for group in plan.groups)
            assert target.nbytes == stated
            assert target._ring.nbytes <= max(factors // 2, 16 * plan.elements * dtype.itemsize) + (
                11 * plan.elements * dtype.itemsize
            )


def test_a_hundred_thousand_nodes_are_one_batch() -> None:
    plan, tail = one_node(100_000, 10), 1
    target = Segment(plan, observable="velocity", snapshot_dtype=torch.float32, tail=tail)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((8, plan.elements), generator=generator)
    push(target, rows)
    found = up_to_date(target, 0, 99_990, 100_000)
    velocities = (
        rows.double()
        .diff(dim=0)
        .numpy()[:, indices(plan.groups[0], plan.elements)[99_990:]]
        .transpose(1, 0, 2)
    )
    wanted = np.concatenate([velocities[:, :5], velocities[:, 1:6]], axis=2)
    products = found.factor.numpy().transpose(0, 2, 1) @ found.factor.numpy()
    np.testing.assert_allclose(products, wanted.transpose(0, 2, 1) @ wanted, rtol=0, atol=1e-12)
    assert found.absorbed == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": plan_blocks({"w": TensorSpec("float32", (LARGEST_BLOCK + 1,))}, "tensor")}, "at most 2048"),
        ({"plan": BlockPlan((), 0, 0, (), ())}, "at least one element"),
        ({"observable": "position"}, "'position'"),
        ({"snapshot_dtype": torch.int32}, "int32"),
        ({"tail": -1}, "tail"),
        ({"forgetting": 0.0}, "forgetting"),
        ({"forgetting": 1.01}, "forgetting"),
    ],
)
def test_refusals(changed: dict[str, Any], message: str) -> None:
    given = {"plan": PLANS["node"], "observable": "state", "snapshot_dtype": torch.float32, **changed}
    with pytest.raises(ValueError, match=message):
        Segment(given.pop("plan"), **given)


def test_blocks_that_are_not_there() -> None:
    target = Segment(PLANS["node"], observable="state", snapshot_dtype=torch.float32)
    for first, stop in ((-1, 1), (2, 1), (0, 4)):
        with pytest.raises(ValueError, match="group of 3"):
            target.pairs(0, first, stop)


# ----------------------------------------------------------------------------------------------------- absorb


def test_absorb_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"\(2, 6, 6\)"):
        absorb(torch.zeros(2, 4, 4, dtype=torch.float64), torch.zeros(2, 5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="forgetting"):
        absorb(torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 5, 1, dtype=torch.float64), 1.5)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_scales_far_from_one(size: int, scale: float) -> None:
    vectors = walk(40, 3 * size).view(40, 3, size).transpose(0, 1)
    start = torch.zeros(3, 2 * size, 2 * size, dtype=torch.float64)
    wanted = absorb(start, vectors)
    torch.testing.assert_close(absorb(start, vectors * scale) / scale, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [1, 3])
def test_what_overflows_stays_at_the_largest_number(size: int) -> None:
    huge = torch.finfo(torch.float64).max
    vectors = torch.full((1, 9, size), huge, dtype=torch.float64)
    start = torch.zeros(1, 2 * size, 2 * size, dtype=torch.float64)
    factor = absorb(start, vectors)
    assert torch.isfinite(factor).all()
    assert factor[0, 0, 0] == huge
    assert torch.isfinite(absorb(factor, vectors)).all()


def test_a_difference_that_overflows_stays_at_the_largest_number() -> None:
    target = Segment(PLANS["weight"], observable="velocity", snapshot_dtype=torch.float64, tail=1)
    huge = torch.finfo(torch.float64).max
    push(
        target,
        [torch.full((SIZE,), sign * huge, dtype=torch.float64) for sign in (1.0, -1.0, 1.0, -1.0, 1.0)],
    )
    found = up_to_date(target, 0, 0, SIZE)
    assert found.vectors[0, :, 0].tolist() == [-huge, huge]
    assert torch.isfinite(found.factor).all()
    assert target.read_last_velocity(0, 1).item() == huge


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_vectors_that_stand_still(size: int, value: float) -> None:
    vectors = torch.full((2, 12, size), value, dtype=torch.float64)
    factor = absorb(torch.zeros(2, 2 * size, 2 * size, dtype=torch.float64), vectors)
    wanted = torch.full((2, 2 * size, 2 * size), 11 * value**2, dtype=torch.float64)
    torch.testing.assert_close(factor.mT @ factor, wanted, rtol=1e-13, atol=1e-13)
    assert (factor.diagonal(dim1=1, dim2=2) >= 0).all()
    assert not torch.signbit(factor[factor == 0]).any()


def test_a_number_that_wakes_up_late() -> None:
    # The first column is zero while the second is not, for one pair.
    paths: Sequence[Sequence[float]] = ([0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 3.0, -4.0, 1.0])
    for path in paths:
        numbers = torch.tensor(path, dtype=torch.float64)
        factor = torch.zeros(1, 2, 2, dtype=torch.float64)
        for index in range(len(path) - 1):
            factor = absorb(factor, numbers[index : index + 2].view(1, 2, 1))
        rows = torch.stack([numbers[:-1], numbers[1:]], dim=1)
        torch.testing.assert_close(factor[0].T @ factor[0], rows.T @ rows, rtol=1e-14, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PLANS)
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    plan, rows = PLANS[name], walk(120).float()
    for observable in OBSERVABLES:
        on_gpu, on_cpu = (
            Segment(plan, observable=observable, snapshot_dtype=torch.float32, device=device)
            for device in ("cuda", "cpu")
        )
        push(on_gpu, rows)
        push(on_cpu, rows)
        for number, group in enumerate(plan.groups):
            found, wanted = (
                up_to_date(on_gpu, number, 0, group.count),
                up_to_date(on_cpu, number, 0, group.count),
            )
            assert found.factor.device.type == "cpu"
            assert torch.equal(found.vectors, wanted.vectors)
            largest = float(wanted.factor.abs().max())
            torch.testing.assert_close(
                found.factor.mT @ found.factor,
                wanted.factor.mT @ wanted.factor,
                rtol=0,
                atol=1e-12 * largest**2,
            )
