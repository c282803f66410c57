"""What a job's window is made for: its tensors, operator and blocks; what that takes, and what is too much.

Part of the engine's room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from koopcast.blocks import BlockPlan
from koopcast.errors import InvalidArgument
from koopcast.gram import LARGEST_ROW_BYTES, largest_row_bytes
from koopcast.operator import MAX_SEGMENT_BLOCK, Operator
from koopcast.partition import plan_blocks
from koopcast.window import Segment, Window
from koopcast.wire import Layout
from koopcast_server.gram_store import GramStore

__all__ = ["DTYPES", "JobShape"]

DTYPES: Final = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MOST_GROUPS: Final = 16_384
"""Batches of blocks: each costs a few calls a snapshot."""
_MOST_WORK: Final = 1e12
"""Blocks times the cube of their size or their window: minutes on a few cores."""
_SCRATCH_PER_SQUARE: Final = 256
"""Bytes that decomposing one R factor takes, over the square of the block's size (`koopcast.window.segment`)."""
_FREE_SCRATCH_BYTES: Final = 64 << 20
"""Scratch that every window may take and no job is charged for."""


@dataclass(frozen=True, slots=True)
class JobShape:
    """What a window is made for.

    Attributes:
        layout: the snapshot's tensors.
        operator: the job's operator.
        stride: trainer steps between snapshots.
        window_dtype: element type of the stored velocities.
        plan: the blocks.
        holders: trainers that hold the window, each a shard of it; 0: the service does.
    """

    layout: Layout
    operator: Operator
    stride: int
    window_dtype: str
    plan: BlockPlan
    holders: int = 0

    @classmethod
    def of(
        cls, layout: Layout, operator: Operator, stride: int, window_dtype: str, holders: int = 0
    ) -> JobShape:
        """Plans the blocks.

        Raises:
            InvalidArgument: units that are none, blocks too large for ``window="segment"``, or more work than a
                service should take.
        """
        plan = plan_blocks(layout.specs, operator.partition, operator.quasi_node_inputs)
        _refuse_unworkable(plan, operator, whole=bool(holders))
        if holders:
            _refuse_long_rows(plan, operator)
        return cls(layout, operator, stride, window_dtype, plan, holders)

    @property
    def bytes_needed(self) -> int:
        """Device memory of a job: the window, one answer under way, and what large R factors need beside them.

        Unit: bytes.
        """
        operator, stored = self.operator, DTYPES[self.layout.storage_dtype]
        if self.holders:
            return self._bytes_of_grams()
        if operator.window == "segment":
            held: int = Segment.bytes_needed(self.plan, observable=operator.observable, snapshot_dtype=stored)
            largest = max(group.size for group in self.plan.groups)
            held += max(0, _SCRATCH_PER_SQUARE * largest**2 - _FREE_SCRATCH_BYTES)
        else:
            held = Window.bytes_needed(
                self.plan,
                operator.window,
                snapshot_dtype=stored,
                window_dtype=DTYPES[self.window_dtype],
                with_state=operator.observable == "state",
            )
        return held + self.layout.elements * stored.itemsize

    def _bytes_of_grams(self) -> int:
        """The Gram matrices, and parts of rows that wait for those of other shards."""
        length, with_state = int(self.operator.window), self.operator.observable == "state"
        held = GramStore.bytes_needed(self.plan, length, with_state=with_state)
        waiting = length * self.holders if self.holders > 1 else 0
        return held + waiting * largest_row_bytes(self.plan.block_count, self.operator)

    def new_grams(self) -> GramStore:
        """The memory of a job whose window its trainers hold, allocated."""
        stored = torch.finfo(DTYPES[self.layout.storage_dtype]).eps
        return GramStore(
            self.plan,
            int(self.operator.window),
            with_state=self.operator.observable == "state",
            epsilons=(stored, torch.finfo(DTYPES[self.window_dtype]).eps),
        )

    def new_store(self, device: torch.device) -> Window | Segment:
        """The memory of such a job, allocated."""
        operator, stored = self.operator, DTYPES[self.layout.storage_dtype]
        if operator.window == "segment":
            return Segment(
                self.plan,
                observable=operator.observable,
                forgetting=operator.forgetting,
                snapshot_dtype=stored,
                device=device,
            )
        return Window(
            self.plan,
            operator.window,
            snapshot_dtype=stored,
            window_dtype=DTYPES[self.window_dtype],
            with_state=operator.observable == "state",
            device=device,
        )


def _refuse_long_rows(plan: BlockPlan, operator: Operator) -> None:
    needed = largest_row_bytes(plan.block_count, operator)
    if needed > LARGEST_ROW_BYTES:
        raise InvalidArgument(
            f"{plan.block_count} blocks of a window of {operator.window} make Gram rows of {needed / 2**20:.1f} MiB; at "
            f"most {LARGEST_ROW_BYTES / 2**20:.0f}: use a coarser partition, a shorter window, or a window that the "
            "service holds",
            field="partition",
            limit=LARGEST_ROW_BYTES,
        )


def _refuse_unworkable(plan: BlockPlan, operator: Operator, *, whole: bool) -> None:
    largest = max(group.size for group in plan.groups)
    if len(plan.groups) > _MOST_GROUPS:
        raise InvalidArgument(
            f"partition={operator.partition!r} makes {len(plan.groups)} batches of blocks of these tensors; at most "
            f'{_MOST_GROUPS}: use partition="network"',
            field="partition",
            limit=_MOST_GROUPS,
        )
    if operator.window == "segment":
        if largest > MAX_SEGMENT_BLOCK:
            raise InvalidArgument(
                f'window="segment" accumulates an R factor for each block, of at most {MAX_SEGMENT_BLOCK} parameters; '
                f"the largest has {largest}: use a smaller partition, or a window of snapshots",
                field="window",
                limit=MAX_SEGMENT_BLOCK,
            )
        work = sum(group.count * group.size**3 for group in plan.groups)
    else:
        work = sum(
            group.count * (operator.window if whole else min(operator.window, group.size)) ** 3
            for group in plan.groups
        )
    if work > _MOST_WORK:
        raise InvalidArgument(
            f"{plan.block_count} blocks of this window are {work:.1e} operations to solve; at most {_MOST_WORK:.0e}: "
            "use a shorter window or a coarser partition",
            field="window",
            limit=_MOST_WORK,
        )
