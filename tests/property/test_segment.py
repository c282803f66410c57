"""However pairs come, their R factor is that of a QR decomposition of all of them at once."""

from __future__ import annotations

import itertools
from typing import Literal
from unittest.mock import patch

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch import Tensor

import koopcast.window.qr as qr_module
import koopcast.window.segment as segment_module
import koopcast.window.segment_memory as memory_module
from koopcast.partition import plan_blocks
from koopcast.window.qr import absorb
from koopcast.window.segment import Segment
from koopcast.window.views import gather
from koopcast.wire import TensorSpec
from segments import up_to_date

moderate = settings(deadline=None, max_examples=60)
sizes = st.integers(1, 4)
forgettings = st.sampled_from([1.0, 0.9, 0.3])
seeds = st.integers(0, 1000)


def zeros(blocks: int, size: int) -> Tensor:
    return torch.zeros(blocks, 2 * size, 2 * size, dtype=torch.float64)


def trajectories(blocks: int, count: int, size: int, seed: int) -> Tensor:
    """(blocks, count, size) float64; some stand still for a while, some are a common multiple of one vector."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn((blocks, count, size), generator=generator, dtype=torch.float64)
    kinds = torch.randint(3, (blocks,), generator=generator)
    vectors[kinds == 1, : count // 2] = 0.0
    vectors[kinds == 2] = vectors[kinds == 2, :, :1].expand(-1, -1, size)
    return vectors


def weighted_rows(vectors: Tensor, forgetting: float) -> Tensor:
    """(blocks, pairs, 2 size): the pairs, as they are to be decomposed."""
    rows = torch.cat([vectors[:, :-1], vectors[:, 1:]], dim=2)
    ages = torch.arange(rows.shape[1] - 1, -1, -1, dtype=torch.float64)
    return rows * (forgetting ** (0.5 * ages))[:, None]


def assert_factor_of(factor: Tensor, rows: Tensor) -> None:
    """Triangular, and the Gram of the rows, column by column to some roundings."""
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal(dim1=1, dim2=2) >= 0).all()
    norms = rows.norm(dim=1).clamp(min=1e-100)
    scales = norms[:, :, None] * norms[:, None, :]
    difference = (factor.mT @ factor - rows.mT @ rows) / scales
    assert float(difference.abs().max()) < 1e-13


@moderate
@given(
    size=sizes,
    count=st.integers(1, 30),
    cuts=st.sets(st.integers(0, 29)),
    blocks=st.integers(1, 5),
    forgetting=forgettings,
    seed=seeds,
)
def test_pieces_make_the_whole(
    size: int, count: int, cuts: set[int], blocks: int, forgetting: float, seed: int
) -> None:
    vectors = trajectories(blocks, count, size, seed)
    factor = zeros(blocks, size)
    ends = [0, *sorted(cut for cut in cuts if 0 < cut < count), count - 1]
    for begin, end in itertools.pairwise(ends):
        factor = absorb(factor, vectors[:, begin : end + 1], forgetting)
    assert_factor_of(factor, weighted_rows(vectors, forgetting))


@moderate
@given(size=sizes, exponent=st.integers(-300, 300), forgetting=forgettings, seed=seeds)
def test_a_power_of_two_goes_straight_through(size: int, exponent: int, forgetting: float, seed: int) -> None:
    vectors, scale = trajectories(3, 12, size, seed), 2.0**exponent
    plain = absorb(absorb(zeros(3, size), vectors[:, :7], forgetting), vectors[:, 6:], forgetting)
    scaled = vectors * scale
    found = absorb(absorb(zeros(3, size), scaled[:, :7], forgetting), scaled[:, 6:], forgetting)
    assert torch.equal(found, plain * scale)


@moderate
@given(order=st.permutations(range(4)), forgetting=forgettings, seed=seeds)
def test_the_order_of_weights_is_the_order_of_columns(order: list[int], forgetting: float, seed: int) -> None:
    vectors = trajectories(3, 12, 4, seed)
    factor = absorb(zeros(3, 4), vectors, forgetting)
    columns = [*order, *(4 + column for column in order)]
    permuted = absorb(zeros(3, 4), vectors[:, :, order], forgetting)
    wanted = (factor.mT @ factor)[:, columns][:, :, columns]
    torch.testing.assert_close(permuted.mT @ permuted, wanted, rtol=1e-12, atol=1e-12)


@moderate
@given(
    values=st.integers(1, 3).flatmap(
        lambda size: arrays(
            "float64", (2, 6, size), elements=st.floats(allow_nan=False, allow_infinity=False)
        )
    ),
    forgetting=forgettings,
)
def test_whatever_is_finite_stays_finite(values: object, forgetting: float) -> None:
    vectors = torch.as_tensor(values)
    factor = zeros(2, vectors.shape[2])
    for begin in (0, 2):
        factor = absorb(factor, vectors[:, begin : begin + 4], forgetting)
        assert torch.isfinite(factor).all()
        assert (factor.diagonal(dim1=1, dim2=2) >= 0).all()


@moderate
@given(
    partition=st.sampled_from(["tensor", "node", "weight"]),
    observable=st.sampled_from(["state", "velocity"]),
    buffer=st.integers(1, 40),
    batch_bytes=st.sampled_from([1, 4096, 1 << 20]),
    tail=st.integers(0, 6),
    pushes=st.integers(0, 90),
    cleared=st.sets(st.integers(0, 89), max_size=2),
    forgetting=forgettings,
    seed=seeds,
)
def test_a_segment_is_its_snapshots_whatever_its_buffer(
    partition: str,
    observable: Literal["state", "velocity"],
    buffer: int,
    batch_bytes: int,
    tail: int,
    pushes: int,
    cleared: set[int],
    forgetting: float,
    seed: int,
) -> None:
    specs = {"a.weight": TensorSpec("float64", (3, 2)), "a.bias": TensorSpec("float64", (3,))}
    plan = plan_blocks(specs, partition)
    snapshots = torch.randn(
        (pushes, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).cumsum(dim=0)
    with (
        patch.object(segment_module, "buffer_length", lambda *_: buffer),
        patch.object(memory_module, "buffer_length", lambda *_: buffer),
        patch.object(qr_module, "_BATCH_BYTES_ON_CPU", batch_bytes),
    ):
        segment = Segment(
            plan, observable=observable, forgetting=forgetting, snapshot_dtype=torch.float64, tail=tail
        )
        for index, snapshot in enumerate(snapshots):
            segment.spare.copy_(snapshot)
            if index in cleared:
                segment.clear()
            segment.publish()
    held = snapshots[max((index for index in cleared if index < pushes), default=0) :]
    assert segment.snapshots_held == len(held)
    vectors = held.diff(dim=0) if observable == "velocity" else held
    for number, group in enumerate(plan.groups):
        found = up_to_date(segment, number, 0, group.count)
        own = torch.empty((len(vectors), group.count, group.size), dtype=torch.float64)
        gather(vectors, group, 0, group.count, own)
        own = own.transpose(0, 1)
        assert found.absorbed == max(0, len(vectors) - 1 - tail)
        assert torch.equal(found.vectors, own[:, found.absorbed :])
        if found.absorbed:
            assert_factor_of(found.factor, weighted_rows(own[:, : found.absorbed + 1], forgetting))
        else:
            assert not found.factor.any()
