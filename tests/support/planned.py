"""Which elements a planned block holds, found with NumPy's own strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koopcast.blocks import BlockGroup, BlockPlan, StridedView

__all__ = ["block_values", "group_values"]

Array = npt.NDArray[Any]


def group_values(group: BlockGroup, flat: Array) -> Array:
    """The vectors of a group's blocks, (count, size); fails where a view leaves the snapshot."""
    parts = []
    for part in group.parts:
        if isinstance(part, StridedView):
            shape, strides = part.block_shape + part.element_shape, part.block_strides + part.element_strides
            last = part.offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
            assert 0 <= part.offset <= last < len(flat)
            steps = tuple(step * flat.itemsize for step in strides)
            parts.append(
                np.lib.stride_tricks.as_strided(flat[part.offset :], shape, steps).reshape(group.count, -1)
            )
        else:
            assert len(part.starts) == group.count
            parts.append(np.stack([flat[start : start + part.elements] for start in part.starts]))
    values = np.concatenate(parts, axis=1)
    assert values.shape == (group.count, group.size)
    return values


def block_values(plan: BlockPlan, flat: Array) -> dict[str, list[Any]]:
    """Block name to its vector, in the order of the blocks' numbers."""
    found: dict[int, list[Any]] = {}
    for group in plan.groups:
        for number, values in zip(group.numbers, group_values(group, flat), strict=True):
            assert number not in found
            found[number] = values.tolist()
    assert sorted(found) == list(range(plan.block_count))
    return {plan.name(number): found[number] for number in range(plan.block_count)}
