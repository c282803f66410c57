"""However a model is cut into shards, their Gram rows sum up to the whole's, and their jumps are its parts."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from koopcast.gram import Coefficients
from koopcast.operator import Operator
from koopcast.window.held import TrainerWindow
from koopcast.wire import TensorSpec

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@st.composite
def cut_models(draw: st.DrawFn) -> tuple[dict[str, TensorSpec], list[dict[str, tuple[int]]]]:
    """Tensors, and for each of some processes how much of each tensor it has: any cut, empty parts too."""
    sizes, count = draw(SIZES), draw(st.integers(1, 4))
    specs = {f"t{index}": TensorSpec("float32", (size,)) for index, size in enumerate(sizes)}
    shards: list[dict[str, tuple[int]]] = [{} for _ in range(count)]
    for name, size in zip(specs, sizes, strict=True):
        cuts = sorted(draw(st.lists(st.integers(0, size), min_size=count - 1, max_size=count - 1)))
        for shard, (start, stop) in zip(shards, pairwise([0, *cuts, size]), strict=True):
            shard[name] = (stop - start,)
    return specs, shards


@settings(max_examples=60, deadline=None)
@given(
    model=cut_models(),
    partition=st.sampled_from(["network", "tensor"]),
    observable=st.sampled_from(["velocity", "state"]),
    window=st.integers(3, 6),
    mask=st.sampled_from([None, 2.0]),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_parts_make_the_whole(
    model: tuple[dict[str, TensorSpec], list[Any]],
    partition: Any,
    observable: Any,
    window: int,
    mask: float | None,
    count: int,
    seed: int,
) -> None:
    specs, shards = model
    random = np.random.default_rng(seed)
    operator = Operator(partition=partition, observable=observable, window=window, mask_tolerance=mask)
    whole = TrainerWindow(specs, operator)
    parts = [TrainerWindow(specs, operator, shard=shard) for shard in shards]
    for step in range(count):
        snapshot = {
            name: torch.from_numpy(random.standard_normal(spec.shape)).float() for name, spec in specs.items()
        }
        whole.write(snapshot)
        expected = whole.publish(step)
        starts = dict.fromkeys(specs, 0)
        rows = []
        for part, shard in zip(parts, shards, strict=True):
            own = {}
            for name, (size,) in shard.items():
                own[name] = snapshot[name][starts[name] : starts[name] + size]
                starts[name] += size
            part.write(own)
            rows.append(part.publish(step))
        for field in ("velocity", "weight", "squared"):
            total = reduce(np.add, (getattr(row, field) for row in rows))
            np.testing.assert_allclose(total, getattr(expected, field), rtol=1e-12, atol=1e-12)
    velocity = random.standard_normal((whole.block_count, whole.snapshots_held - 1))
    ours = Coefficients(count - 1, velocity, random.standard_normal(whole.block_count), strides=1.5)
    jump = whole.split(whole.combine(ours))
    jumps = [part.split(part.combine(ours)) for part in parts]
    for name in specs:
        torch.testing.assert_close(
            torch.cat([found[name] for found in jumps]), jump[name], rtol=1e-5, atol=1e-6
        )
