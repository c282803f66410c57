"""Whatever is published, the window knows its last snapshots and nothing else."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from koopcast.window import Window

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
moderate = settings(deadline=None, max_examples=60)


@moderate
@given(
    sizes=sizes,
    length=st.integers(2, 8),
    pushes=st.integers(1, 20),
    cleared=st.sets(st.integers(0, 19), max_size=2),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_products_and_combinations_are_those_of_the_snapshots_held(
    sizes: list[int],
    length: int,
    pushes: int,
    cleared: set[int],
    dtypes: tuple[torch.dtype, torch.dtype],
    scale: float,
    seed: int,
) -> None:
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    generator = torch.Generator().manual_seed(seed)
    window = Window(bounds, length, snapshot_dtype=dtypes[0], window_dtype=dtypes[1])
    held: list[torch.Tensor] = []
    for index in range(pushes):
        if index in cleared:
            window.clear()
            held.clear()
        row = (torch.randn(bounds[-1], generator=generator, dtype=torch.float64) * scale).to(dtypes[0])
        window.spare.copy_(row)
        window.publish()
        held = [*held, row.double()][-length:]
    rows = torch.stack(held)
    velocities = rows.diff(dim=0).to(dtypes[1]).double()
    products = window.products()
    coefficients = torch.randn(len(sizes), len(velocities), generator=generator, dtype=torch.float64)
    last = torch.randn(len(sizes), generator=generator, dtype=torch.float64)
    out = torch.empty(bounds[-1], dtype=torch.float64)
    window.combine(coefficients, last, out)
    largest = float(rows.abs().max())
    for block, (a, b) in enumerate(itertools.pairwise(bounds)):
        v, w = velocities[:, a:b], rows[-1, a:b]
        tiny = 1e-12 * largest**2 * max(1, b - a)
        torch.testing.assert_close(products.velocity_gram[block], v @ v.T, rtol=1e-12, atol=tiny)
        torch.testing.assert_close(products.velocity_dot_last[block], v @ w, rtol=1e-12, atol=tiny)
        torch.testing.assert_close(products.last_squared[block], w @ w, rtol=1e-12, atol=tiny)
        wanted = coefficients[block] @ v + last[block] * w
        exact = torch.float64 in dtypes
        torch.testing.assert_close(
            out[a:b], wanted, rtol=0, atol=(1e-13 if exact else 2e-5) * max(largest, 1e-30)
        )
    torch.testing.assert_close(products.velocity_gram, products.velocity_gram.mT, rtol=0, atol=0)


@moderate
@given(sizes=sizes, seed=st.integers(0, 1000))
def test_one_block_knows_nothing_of_the_others(sizes: list[int], seed: int) -> None:
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    rows = torch.randn((6, bounds[-1]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    together = Window(bounds, 5, snapshot_dtype=torch.float64, window_dtype=torch.float64)
    for row in rows:
        together.spare.copy_(row)
        together.publish()
    for block, (a, b) in enumerate(itertools.pairwise(bounds)):
        if a == b:
            assert (together.products().velocity_gram[block] == 0).all()
            continue
        alone = Window([0, b - a], 5, snapshot_dtype=torch.float64, window_dtype=torch.float64)
        for row in rows:
            alone.spare.copy_(row[a:b])
            alone.publish()
        for whole, part in zip(together.products()[:3], alone.products()[:3], strict=True):
            torch.testing.assert_close(whole[block], part[0], rtol=1e-12, atol=1e-12)
