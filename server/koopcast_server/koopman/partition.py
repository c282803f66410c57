"""How tensors are divided into blocks, each with an operator of its own.

``"network"`` and ``"tensor"`` are here; ``"node"``, ``"quasi_node"`` and ``"weight"`` (design §2) come next:
they cut tensors apart, and will return an order of elements besides names and bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["Partition", "block_bounds"]

Partition = Literal["network", "tensor"]


def block_bounds(sizes: Mapping[str, int], partition: Partition) -> tuple[list[str], list[int]]:
    """Name the blocks and say where each begins.

    Args:
        sizes: elements of each tensor, in the order in which they lie in a snapshot.
        partition: ``"network"``, one block of all; ``"tensor"``, one block each.

    Returns:
        B names, and B + 1 bounds from 0 to the sum of the sizes.

    Raises:
        ValueError: for an unknown partition.
    """
    if partition == "network":
        return ["network"], [0, sum(sizes.values())]
    if partition == "tensor":
        bounds = [0]
        for size in sizes.values():
            bounds.append(bounds[-1] + size)
        return list(sizes), bounds
    raise ValueError(f"unknown partition {partition!r}")
