"""Whatever is published, the window knows its last snapshots and nothing else."""

from __future__ import annotations

from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

import koopcast.window.gram as gram_module
from koopcast.blocks import BlockPlan
from koopcast.partition import plan_blocks
from koopcast.window import Window
from koopcast.wire import TensorSpec
from planned import group_values

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
moderate = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 1000)


@st.composite
def plans(draw: st.DrawFn) -> BlockPlan:
    """Of a few small tensors, in any partition."""
    specs = {}
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
        axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
        specs[f"{number}.weight"] = TensorSpec("float32", shape, node_axis=axis)
        if len(shape) > 1 and draw(st.booleans()):
            specs[f"{number}.bias"] = TensorSpec("float32", (shape[axis or 0],))
    partition = draw(st.sampled_from(["network", "tensor", "node", "quasi_node", "weight"]))
    return plan_blocks(specs, partition, draw(st.integers(1, 8)))


def near(found: Tensor | None, wanted: Tensor, size: float) -> None:
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12 * size)


def check(window: Window, plan: BlockPlan, rows: Tensor, stored: torch.dtype, seed: int) -> None:
    """Products, vectors and combinations are those of the snapshots held."""
    generator = torch.Generator().manual_seed(seed)
    velocities, last = rows.diff(dim=0).to(stored).double(), rows[-1]
    largest = max(float(rows.abs().max()), 1e-30)
    exact = torch.float64 in (stored, window.last.dtype)
    out, wanted = torch.empty(plan.elements, dtype=torch.float64), torch.empty(plan.elements).double()
    for number, group in enumerate(plan.groups):
        own = torch.from_numpy(group_values(group, np.arange(plan.elements)))
        v, w = velocities[:, own].transpose(0, 1), last[own]
        found = window.vectors(number, 0, group.count)
        assert torch.equal(found.velocities, v)
        assert torch.equal(found.last, w)
        products = window.products(number)
        assert (products is not None) == (group.size > window.length - 1)
        if products is not None:
            near(products.velocity_gram, v @ v.mT, group.size * largest**2)
            near(products.velocity_dot_last, (v @ w[:, :, None])[..., 0], group.size * largest**2)
            near(products.last_squared, w.square().sum(dim=1), group.size * largest**2)
            assert torch.equal(products.velocity_gram, products.velocity_gram.mT)
        coefficients = torch.randn((group.count, len(velocities)), generator=generator, dtype=torch.float64)
        own_last = torch.randn(group.count, generator=generator, dtype=torch.float64)
        window.combine(number, coefficients, own_last, out)
        wanted[own] = torch.einsum("bj,bjs->bs", coefficients, v) + own_last[:, None] * w
    torch.testing.assert_close(out, wanted, rtol=0, atol=(1e-13 if exact else 2e-5) * largest)


@moderate
@given(
    plan=plans(),
    length=st.integers(2, 8),
    pushes=st.integers(1, 20),
    cleared=st.sets(st.integers(0, 19), max_size=2),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    cut=st.sampled_from([1, 3, 7, 1 << 16]),
    seed=seeds,
)
def test_a_window_knows_the_snapshots_held(
    plan: BlockPlan,
    length: int,
    pushes: int,
    cleared: set[int],
    dtypes: tuple[torch.dtype, torch.dtype],
    scale: float,
    cut: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with patch.object(gram_module, "_ELEMENTS_ON_CPU", cut):
        window = Window(plan, length, snapshot_dtype=dtypes[0], window_dtype=dtypes[1])
    held: list[Tensor] = []
    for index in range(pushes):
        if index in cleared:
            window.clear()
            held.clear()
        row = (torch.randn(plan.elements, generator=generator, dtype=torch.float64) * scale).to(dtypes[0])
        window.spare.copy_(row)
        window.publish()
        held = [*held, row.double()][-length:]
    assert window.snapshots_held == len(held)
    check(window, plan, torch.stack(held), dtypes[1], seed)


@moderate
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=seeds)
def test_one_block_knows_nothing_of_the_others(sizes: list[int], seed: int) -> None:
    specs = {str(number): TensorSpec("float32", (size,)) for number, size in enumerate(sizes)}
    rows = torch.randn((6, sum(sizes)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def filled(plan: BlockPlan, snapshots: Tensor) -> Window:
        window = Window(plan, 5, snapshot_dtype=torch.float64, window_dtype=torch.float64)
        for row in snapshots:
            window.spare.copy_(row)
            window.publish()
        return window

    plan = plan_blocks(specs, "tensor")
    together = filled(plan, rows)
    for number, group in enumerate(plan.groups):
        for block, own in enumerate(group_values(group, np.arange(plan.elements))):
            part = plan_blocks({"one": TensorSpec("float32", (group.size,))}, "tensor")
            alone = filled(part, rows[:, own])
            assert together.is_dual(number) == alone.is_dual(0)
            of_all, of_one = together.products(number, block, block + 1), alone.products(0)
            assert (of_all is None) == (of_one is None)
            if of_all is not None and of_one is not None:
                near(of_all.velocity_gram, of_one.velocity_gram, 1.0)
                assert of_one.velocity_dot_last is not None
                near(of_all.velocity_dot_last, of_one.velocity_dot_last, 1.0)
                near(of_all.last_squared, of_one.last_squared, 1.0)


@moderate
@given(
    plan=plans(),
    length=st.integers(2, 6),
    cut=st.sampled_from([1, 5, 1 << 16]),
    exponent=st.integers(-30, 30),
    seed=seeds,
)
def test_rough_products_are_close_to_exact_ones_at_any_scale(
    plan: BlockPlan, length: int, cut: int, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn((length + 2, plan.elements), generator=generator) * 10.0**exponent).float()
    windows = []
    with patch.object(gram_module, "_ELEMENTS_ON_CPU", cut), patch.object(gram_module, "_FLOAT32_FROM", 1):
        for with_state in (False, True):
            window = Window(
                plan, length, snapshot_dtype=torch.float32, window_dtype=torch.float32, with_state=with_state
            )
            for row in rows:
                window.spare.copy_(row)
                window.publish()
            windows.append(window)
    for number in range(len(plan.groups)):
        rough, exact = (window.products(number) for window in windows)
        assert (rough is None) == (exact is None)
        if rough is not None and exact is not None:
            lengths = exact.velocity_gram.diagonal(dim1=1, dim2=2).sqrt()
            error = (rough.velocity_gram - exact.velocity_gram).abs()
            assert (error <= 1e-6 * lengths[:, :, None] * lengths[:, None, :]).all()
            torch.testing.assert_close(rough.last_squared, exact.last_squared, rtol=1e-6, atol=0)
