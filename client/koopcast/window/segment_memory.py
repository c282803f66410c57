"""How long a segment's ring is, and what a segment takes: numbers that the module of `Segment` explains."""

from __future__ import annotations

from typing import Final

import torch

from koopcast.blocks import BlockPlan

__all__ = ["LARGEST_BLOCK", "buffer_length", "check_segment", "factor_bytes", "ring_rows"]

LARGEST_BLOCK: Final = 2048
"""Numbers in a block at most: its R factor has 4 times the square of that many entries."""

_LEAST_BUFFER = 16
"""Snapshots between two decompositions at least: the cost of R itself is shared among them."""
_GOOD_BUFFER = 64
"""Beyond this many, and 2 s, a longer buffer saves nothing."""


def factor_bytes(plan: BlockPlan) -> int:
    """Bytes of all R factors."""
    return sum(32 * group.count * group.size**2 for group in plan.groups)


def buffer_length(plan: BlockPlan, dtype: torch.dtype) -> int:
    """k: snapshots between two decompositions of the same block.

    The cost of one is that of ``2 s + k`` rows. With k = 2 s half of it is for new rows. The ring is one for all
    blocks, so it is held to half the memory of R, for plans of one long block among very many short ones.
    """
    wanted = max(_GOOD_BUFFER, 2 * max(group.size for group in plan.groups))
    affordable = factor_bytes(plan) // (2 * plan.elements * dtype.itemsize)
    return max(_LEAST_BUFFER, min(wanted, affordable))


def ring_rows(plan: BlockPlan, observable: str, dtype: torch.dtype, tail: int) -> int:
    """Snapshots in the ring: when a batch's turn comes again, what it has not absorbed must still be there.

    At its turn a batch leaves ``tail + 1`` vectors, k snapshots follow, and there is one spare.
    """
    return buffer_length(plan, dtype) + tail + (3 if observable == "velocity" else 2)


def check_segment(plan: BlockPlan, observable: str, dtype: torch.dtype, tail: int) -> None:
    """Refuses a plan, an observable, a dtype or a tail that make no segment.

    Raises:
        ValueError: it is one of these.
    """
    if plan.elements < 1:
        raise ValueError("a segment needs at least one element")
    longest = max(group.size for group in plan.groups)
    if longest > LARGEST_BLOCK:
        raise ValueError(f"blocks of a whole segment have at most {LARGEST_BLOCK} elements, not {longest}")
    if observable not in ("state", "velocity"):
        raise ValueError(f"observable must be 'state' or 'velocity', not {observable!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"a segment holds floating-point numbers, not {dtype}")
    if tail < 0:
        raise ValueError(f"tail must not be negative, not {tail}")
