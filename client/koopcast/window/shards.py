"""Which blocks of a job live in one of its trainer's processes, and whether they may."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcast.blocks import BlockPlan
from koopcast.errors import ArgumentValueError
from koopcast.gram import LARGEST_ROW_BYTES, largest_row_bytes
from koopcast.operator import Operator
from koopcast.partition import plan_blocks
from koopcast.wire import TensorSpec

__all__ = ["Shard", "ShardPlan", "plan_shard"]

Shard = Mapping[str, tuple[int, ...]]
"""Of every tensor of the job by name, the shape of the part that lives in this process; a 0 in it: none of it."""

_DIVISIBLE: Final = ("network", "tensor")
"""Partitions whose products are sums over parts, however a tensor is cut."""


class ShardPlan(NamedTuple):
    """The blocks of one process.

    Attributes:
        blocks: those of its parts, which are laid out one after the other; None where it has no element.
        block_count: B, blocks of the job.
        numbers: for each group of `blocks`, the job's numbers of its blocks.
    """

    blocks: BlockPlan | None
    block_count: int
    numbers: list[npt.NDArray[np.int64]]


def plan_shard(specs: Mapping[str, TensorSpec], operator: Operator, shard: Shard | None) -> ShardPlan:
    """Plan the blocks held here.

    Args:
        specs: of the job's tensors, whole, in order.
        operator: the job's.
        shard: what is held of them; None: all.

    Raises:
        ArgumentValueError: an operator whose blocks must be whole in one place, or too many blocks for a message.
    """
    whole = plan_blocks(specs, operator.partition, operator.quasi_node_inputs)
    _refuse_large(whole.block_count, operator)
    if shard is None:
        return ShardPlan(whole, whole.block_count, [np.asarray(group.numbers) for group in whole.groups])
    if operator.partition not in _DIVISIBLE:
        raise ArgumentValueError(
            f"partition={operator.partition!r} has operators of units, which must be whole where they live; this trainer "
            'is sharded: use snapshots="server" on a trainer that is not, or partition="tensor" or "network"',
            field="partition",
        )
    if set(shard) != set(specs):
        raise ArgumentValueError("a shard says of every tensor of the job what it holds of it", field="shard")
    held = {name: TensorSpec(specs[name].dtype, (prod(shard[name]),)) for name in specs if prod(shard[name])}
    if not held:
        return ShardPlan(None, whole.block_count, [])
    plan, one_block = plan_blocks(held, operator.partition), operator.partition == "network"
    tensors = np.asarray([0 if one_block else number for number, name in enumerate(specs) if name in held])
    return ShardPlan(plan, whole.block_count, [tensors[np.asarray(group.numbers)] for group in plan.groups])


def _refuse_large(blocks: int, operator: Operator) -> None:
    needed = largest_row_bytes(blocks, operator)
    if needed > LARGEST_ROW_BYTES:
        raise ArgumentValueError(
            f"{blocks} blocks of a window of {operator.window} make Gram rows of {needed / 2**20:.1f} MiB; at most "
            f'{LARGEST_ROW_BYTES / 2**20:.0f}: use a coarser partition, a shorter window, or snapshots="server"',
            field="partition",
            limit=LARGEST_ROW_BYTES,
        )
