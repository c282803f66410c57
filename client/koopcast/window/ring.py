"""The window: the last snapshots of one job, their Gram matrices, and combinations of them.

::

    spare ── publish() ──> velocities (ring)      d = spare - last, over the oldest one
      ^                    Gram rows              <d, every stored velocity>, float64, of long blocks
      └───── swap ──────── last                   spare and last change places

This is the only code that touches arrays as long as the model (design §1: the window moves bytes, the operator
thinks). It runs on the service and, for trainer-held windows, inside the trainer, so it knows of neither.

Consecutive differences ("velocities") are stored, and the last snapshot in full. Differences of close floats are
exact, half precision keeps its few bits for what changes, and no large common part eats the digits of a Gram.

Blocks longer than the window (*dual*) are known by their Gram matrices. The others (*primal*) are shorter than what
a Gram matrix would say of them: they are read, when asked for, as they are. A window of which only inner products
leave the trainer (`koopcast.window.held`) has all blocks dual.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, BlockPlan
from koopcast.window.boxes import Box, boxes_of
from koopcast.window.combination import combine_boxes
from koopcast.window.gram import GroupGram, Incoming, box_limit
from koopcast.window.long import gram_of
from koopcast.window.readings import WindowProducts, WindowRow, WindowVectors
from koopcast.window.slots import Slots
from koopcast.window.views import gather, scatter

__all__ = ["Window", "WindowProducts", "WindowVectors"]


class Window:
    """A bounded ring of velocities, one last and one spare snapshot, and the Gram matrices of long blocks.

    Not thread-safe. Writing a snapshot into `spare` costs the window nothing until `publish`.

    Attributes:
        size: n, elements in a snapshot.
        length: weight snapshots held when full; length - 1 velocities.
        block_count: B, of all groups.
        device: where all of it lives.
    """

    def __init__(
        self,
        plan: BlockPlan,
        length: int,
        *,
        snapshot_dtype: torch.dtype,
        window_dtype: torch.dtype,
        with_state: bool = True,
        all_dual: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate everything: `bytes_needed` bytes on `device`.

        Args:
            plan: the blocks.
            length: weight snapshots to hold, at least 2.
            snapshot_dtype: of `last` and `spare`.
            window_dtype: of the stored velocities.
            with_state: keep the products of velocities and weights too. They are float64, and so are then all the
                others: a `publish` of long blocks takes twice as long.
            all_dual: keep Gram matrices of short blocks too.
            device: a torch device.

        Raises:
            ValueError: for a plan, a length or a dtype that make no window.
        """
        _check(plan, length, snapshot_dtype, window_dtype)
        self.size, self.length, self.block_count = plan.elements, length, plan.block_count
        self.device = torch.device(device)
        rows = length - 1
        self._slots = Slots(
            self.size, rows, snapshot_dtype=snapshot_dtype, window_dtype=window_dtype, device=self.device
        )
        self._groups: tuple[BlockGroup, ...] = plan.groups
        self._grams = [
            gram_of(group, rows, snapshot_dtype, window_dtype, with_state=with_state, device=self.device)
            if all_dual or _is_dual(group, length)
            else None
            for group in plan.groups
        ]
        limit = box_limit(length, self._slots.working, self.device)
        self._boxes: list[Sequence[Box]] = [
            list(boxes_of(group, limit)) if gram is None else gram.boxes
            for group, gram in zip(self._groups, self._grams, strict=True)
        ]
        self.clear()

    @staticmethod
    def bytes_needed(
        plan: BlockPlan,
        length: int,
        *,
        snapshot_dtype: torch.dtype,
        window_dtype: torch.dtype,
        with_state: bool = True,
        all_dual: bool = False,
    ) -> int:
        """Bytes that such a window allocates and keeps; `publish` and `combine` need < 64 MiB more."""
        _check(plan, length, snapshot_dtype, window_dtype)
        rows = length - 1
        stored = Slots.bytes_needed(
            plan.elements, rows, snapshot_dtype=snapshot_dtype, window_dtype=window_dtype
        )
        return stored + sum(
            GroupGram.bytes_needed(group, rows, with_state=with_state)
            for group in plan.groups
            if all_dual or _is_dual(group, length)
        )

    @property
    def nbytes(self) -> int:
        """Bytes held; equals `bytes_needed`."""
        return self._slots.nbytes + sum(gram.nbytes for gram in self._grams if gram is not None)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window: 0 to `length`."""
        return self._slots.count + 1 if self._slots.has_last else 0

    @property
    def spare(self) -> Tensor:
        """(n,) where the coming snapshot is to be written; another array after each `publish`."""
        return self._slots.spare

    @property
    def last(self) -> Tensor:
        """(n,) the last published snapshot; meaningless while `snapshots_held` is 0. Not to be written."""
        return self._slots.last

    def pin(self) -> None:
        """Page-lock the snapshots of a window on the CPU that holds none yet, for copies from and to a GPU."""
        self._slots.pin()

    def clear(self) -> None:
        """Forget all snapshots; the next `publish` is the first one."""
        self._slots.clear()

    def publish(self) -> None:
        """Take what stands in `spare` as the newest snapshot.

        Reads every stored velocity of a dual block once, and none of a primal one. Should it raise (no memory for
        scratch, an interrupt), the window holds what it held, except that a full one has lost its oldest snapshot.
        The values must be finite.
        """
        slots = self._slots
        slot, held = slots.begin()
        new = Incoming(slots.velocities[:held], slot, slots.spare, slots.last, 1 - slots.face)
        for gram, boxes in zip(self._grams, self._boxes, strict=True):
            if gram is not None:
                gram.take(new, partial(slots.store, slot=slot))
            elif held:
                for box in boxes:
                    slots.store(box, slot)
        slots.finish(held)

    def is_dual(self, group: int) -> bool:
        """Whether blocks of this group have Gram matrices: those longer than a full window has velocities, or all."""
        return self._grams[group] is not None

    def products(self, group: int, first: int = 0, stop: int | None = None) -> WindowProducts | None:
        """The Gram matrices and their kin of a group's blocks ``first:stop``, copied to the CPU.

        Args:
            group: the group's index in the plan.
            first: the first block.
            stop: behind the last block; None for all.

        Returns:
            None for a primal group.

        Raises:
            ValueError: for blocks that the group has not.
        """
        stop = self._groups[group].count if stop is None else stop
        self._check_blocks(group, first, stop)
        gram = self._grams[group]
        if gram is None:
            return None
        order = torch.tensor(self._slots.order(), dtype=torch.long, device=self.device)
        # Oldest first, a row knows the velocities up to its own.
        lower = gram.velocity_rows[first:stop].index_select(1, order).index_select(2, order).tril_()
        by_last = gram.weight_rows[self._slots.face, first:stop]
        squared = gram.weights_squared[self._slots.face, first:stop]
        return WindowProducts(
            velocity_gram=(lower + lower.tril(-1).mT).to("cpu"),
            velocity_dot_last=by_last.index_select(1, order).to("cpu") if by_last.shape[1] else None,
            last_squared=squared.to("cpu", copy=True)
            if self._slots.has_last
            else torch.zeros_like(squared, device="cpu"),
            snapshot_epsilon=torch.finfo(self._slots.last.dtype).eps,
            window_epsilon=torch.finfo(self._slots.velocities.dtype).eps,
        )

    def newest_row(self) -> WindowRow:
        """What the last snapshot added to the products of the dual groups, one after the other, copied to the CPU.

        Raises:
            ValueError: no group is dual.
        """
        slots, grams = self._slots, [gram for gram in self._grams if gram is not None]
        if not grams:
            raise ValueError("no group of this window has Gram matrices")
        order = torch.tensor(slots.order(), dtype=torch.long, device=self.device)
        by_last = torch.cat([gram.weight_rows[slots.face] for gram in grams])
        return WindowRow(
            velocity=torch.cat([gram.velocity_rows[:, slots.newest] for gram in grams])[:, order].to("cpu"),
            weight=(by_last[:, order] if by_last.shape[1] else by_last).to("cpu"),
            squared=torch.cat([gram.weights_squared[slots.face] for gram in grams]).to("cpu"),
        )

    def vectors(self, group: int, first: int, stop: int) -> WindowVectors:
        """Copy blocks ``first:stop`` of any group to the CPU.

        Args:
            group: the group's index in the plan.
            first: the first block.
            stop: behind the last block.

        Raises:
            ValueError: for blocks that the group has not.
        """
        self._check_blocks(group, first, stop)
        blocks, on_cpu = self._groups[group], self.device.type == "cpu"
        shape = (self._slots.count + 1, stop - first, blocks.size)
        # On the CPU converted on the way. Elsewhere what crosses to it is no wider than what is stored.
        stored = torch.promote_types(self._slots.velocities.dtype, self._slots.last.dtype)
        found = torch.empty(shape, dtype=torch.float64 if on_cpu else stored, device=self.device)
        row = 0
        for slots in self._slots.runs():
            gather(
                self._slots.velocities[slots],
                blocks,
                first,
                stop,
                found[row : row + slots.stop - slots.start],
            )
            row += slots.stop - slots.start
        if self._slots.has_last:
            gather(self._slots.last[None], blocks, first, stop, found[row:])
        else:
            found[row] = 0.0
        found = found.to("cpu", torch.float64)
        return WindowVectors(
            velocities=found[:row].transpose(0, 1),
            last=found[row],
            snapshot_epsilon=torch.finfo(self._slots.last.dtype).eps,
            window_epsilon=torch.finfo(self._slots.velocities.dtype).eps,
        )

    def read_last_velocity(self, start: int, stop: int) -> Tensor:
        """(stop - start,) a view of the last change of elements ``start:stop``, as stored. Not to be written.

        Raises:
            ValueError: while there are fewer than 2 snapshots.
        """
        if not self._slots.count:
            raise ValueError(f"a velocity needs 2 snapshots, not {self.snapshots_held}")
        return self._slots.velocities[self._slots.newest, start:stop]

    def combine(
        self, group: int, velocity_coefficients: Tensor, last_coefficients: Tensor | None, out: Tensor
    ) -> None:
        """Write ``out[block] = sum_j c_j v_j + c_last w_last`` for a group's blocks; other elements stay.

        Accumulates in float32, or in float64 where velocities or snapshots are float64. Stretches of blocks whose
        coefficients are all zero give zeros and are not read.

        Args:
            group: the group's index in the plan.
            velocity_coefficients: (B, M) float64, velocities oldest first, M = snapshots_held - 1.
            last_coefficients: (B,) float64, or None for zeros.
            out: (n,) on this window's device, of any floating dtype; must not be part of the window.

        Raises:
            ValueError: for other shapes, or out on another device.
        """
        count = self._groups[group].count
        _check_coefficients(velocity_coefficients, "velocity_coefficients", (count, self._slots.count))
        self._check_out(out)
        if last_coefficients is not None:
            _check_coefficients(last_coefficients, "last_coefficients", (count,))
        combine_boxes(self._boxes[group], self._slots, velocity_coefficients, last_coefficients, out)

    def scatter(self, group: int, first: int, stop: int, values: Tensor, out: Tensor) -> None:
        """Write the elements of blocks ``first:stop`` of a group into `out`; other elements stay.

        Args:
            group: the group's index in the plan.
            first: the first block.
            stop: behind the last block.
            values: (stop - first, s), of any floating dtype, on any device.
            out: (n,) on this window's device, of any floating dtype; must not be part of the window.

        Raises:
            ValueError: for other shapes, or out on another device.
        """
        self._check_blocks(group, first, stop)
        blocks = self._groups[group]
        if values.shape != (stop - first, blocks.size):
            raise ValueError(
                f"values must have shape {(stop - first, blocks.size)}, not {tuple(values.shape)}"
            )
        self._check_out(out)
        scatter(values, blocks, first, stop, out)

    def _check_blocks(self, group: int, first: int, stop: int) -> None:
        if not 0 <= first <= stop <= self._groups[group].count:
            raise ValueError(f"blocks {first}:{stop} are not in a group of {self._groups[group].count}")

    def _check_out(self, out: Tensor) -> None:
        if out.shape != (self.size,) or out.device != self._slots.last.device or not out.is_floating_point():
            raise ValueError(f"out must be {self.size} floating numbers on {self._slots.last.device}")


def _is_dual(group: BlockGroup, length: int) -> bool:
    return group.size > length - 1


def _check(plan: BlockPlan, length: int, snapshot_dtype: torch.dtype, window_dtype: torch.dtype) -> None:
    if plan.elements < 1:
        raise ValueError("a window needs at least one element")
    if length < 2:
        raise ValueError(f"a window holds at least 2 snapshots, not {length}")
    for dtype in (snapshot_dtype, window_dtype):
        if not dtype.is_floating_point:
            raise ValueError(f"a window holds floating-point numbers, not {dtype}")


def _check_coefficients(values: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(values.shape)}")
