"""The whole segment: every pair of consecutive vectors since it began, accumulated as they come.

::

    spare ── publish() ──> snapshots (ring of the last few)
                               │ every k snapshots, one batch of blocks after the other
                               v
                           R factors (one a block)         pairs() = R + what stands in the ring

The long form of the window, for blocks that are shorter than their history (Dogra & Redman 2020, arXiv
2006.02361: 10,000 snapshots of 11 numbers). No snapshot is stored but the last few. What least squares needs
to know of the others is in the R factor of their pairs (see `koopcast.window.qr`): design §2, and as accurate
as a decomposition of all of them at once.

Memory, in bytes: ``32 s²`` for a block of s numbers (R has 2 s rows and columns of float64), and the ring: 16
snapshots or more, up to half as much as all R together, and `tail` + 3 snapshots more. While it works,
``max(64 MiB, 256 s²)`` more for the largest s, 1 GiB for 2048. So a unit with 10 inputs takes 4 kB, one with
784 inputs 20 MB, and a block of 2048 numbers 134 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, BlockPlan
from koopcast.window.qr import absorb, batch_blocks
from koopcast.window.segment_memory import (
    LARGEST_BLOCK,
    buffer_length,
    check_segment,
    factor_bytes,
    ring_rows,
)
from koopcast.window.views import gather, scatter

__all__ = ["LARGEST_BLOCK", "Segment", "SegmentPairs", "absorb"]


class SegmentPairs(NamedTuple):
    """The pairs of some blocks, on the CPU. b blocks of s numbers; P pairs are not in the factor yet.

    ``absorb(factor, vectors, forgetting)`` gives R of all pairs.

    Attributes:
        factor: (b, 2 s, 2 s) float64, upper triangular, diagonal >= 0: R of the oldest pairs, the newest of which weighs
            1. Zeros while `absorbed` is 0.
        vectors: (b, P + 1, s) float64: the vectors since then, oldest first. The first is the second vector of the newest
            pair in `factor`, so that each neighbouring two are a pair. (b, 0, s) while there is no vector.
        absorbed: pairs in `factor`. P is at least the segment's `tail`, where there are so many.
        last: (b, s) float64, the last snapshot; zeros before the first one.
        snapshot_epsilon: relative spacing of the snapshots' dtype.
    """

    factor: Tensor
    vectors: Tensor
    absorbed: int
    last: Tensor
    snapshot_epsilon: float


class _Batch(NamedTuple):
    """Blocks ``first:stop`` of a group: what is decomposed in one go."""

    group: int
    first: int
    stop: int


class Segment:
    """The least-squares problem from each vector to the next, for every block, over a whole segment.

    Vectors are the weights (`state`) or the differences of consecutive snapshots (`velocity`). The same protocol
    as `Window`: write a snapshot into `spare`, then `publish`. Not thread-safe.

    Attributes:
        size: n, elements in a snapshot.
        block_count: B.
        device: where all of it lives.
        tail: pairs that are kept apart from R.
        forgetting: weight of a pair relative to its successor's.
    """

    def __init__(
        self,
        plan: BlockPlan,
        *,
        observable: Literal["state", "velocity"],
        forgetting: float = 1.0,
        snapshot_dtype: torch.dtype,
        device: torch.device | str = "cpu",
        tail: int = 8,
    ) -> None:
        """Allocate everything: `bytes_needed` bytes on `device`.

        Args:
            plan: the blocks; none longer than `LARGEST_BLOCK`.
            observable: what a vector is.
            forgetting: weight of a pair relative to its successor's, in (0, 1].
            snapshot_dtype: of the snapshots. All arithmetic is float64, also on differences.
            device: a torch device.
            tail: the last pairs that are kept apart from R, for whoever fits on the pairs before them.

        Raises:
            ValueError: for arguments out of range, or a block that is too long.
        """
        check_segment(plan, observable, snapshot_dtype, tail)
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(f"forgetting must be in (0, 1], not {forgetting}")
        self.size, self.block_count = plan.elements, plan.block_count
        self.device = torch.device(device)
        self._groups: tuple[BlockGroup, ...] = plan.groups
        self._lag = 1 if observable == "velocity" else 0  # the first vector needs so many snapshots before it
        self.forgetting, self.tail = forgetting, tail
        self._period = buffer_length(plan, snapshot_dtype)
        rows = ring_rows(plan, observable, snapshot_dtype, tail)
        self._ring = torch.zeros((rows, self.size), dtype=snapshot_dtype, device=self.device)
        self._factors = [
            torch.zeros(
                (group.count, 2 * group.size, 2 * group.size), dtype=torch.float64, device=self.device
            )
            for group in self._groups
        ]
        self._batches = list(self._cut())
        self._absorbed = [0] * len(self._batches)  # pairs in R, by batch
        self._first_row = 0  # where in the ring the segment's first snapshot stood
        self._count = 0  # snapshots of this segment

    @staticmethod
    def bytes_needed(
        plan: BlockPlan,
        *,
        observable: Literal["state", "velocity"],
        snapshot_dtype: torch.dtype,
        tail: int = 8,
    ) -> int:
        """Bytes that such a segment allocates and keeps; see the module for what it needs while it works."""
        check_segment(plan, observable, snapshot_dtype, tail)
        rows = ring_rows(plan, observable, snapshot_dtype, tail)
        return factor_bytes(plan) + rows * plan.elements * snapshot_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes held; equals `bytes_needed`."""
        return self._ring.nbytes + sum(factor.nbytes for factor in self._factors)

    @property
    def snapshots_held(self) -> int:
        """Snapshots of this segment: all of them, though most are no longer stored."""
        return self._count

    @property
    def spare(self) -> Tensor:
        """(n,) where the coming snapshot is to be written; another array after each `publish`."""
        return self._ring[self._row(self._count)]

    @property
    def last(self) -> Tensor:
        """(n,) the last published snapshot; meaningless while `snapshots_held` is 0. Not to be written."""
        return self._ring[self._row(self._count - 1)]

    def clear(self) -> None:
        """Forget all snapshots; the next `publish` is the first one. What stands in `spare` stays there."""
        self._first_row = self._row(self._count)
        self._count = 0
        self._absorbed = [0] * len(self._batches)
        for factor in self._factors:
            factor.zero_()

    def publish(self) -> None:
        """Take what stands in `spare` as the newest snapshot. The values must be finite.

        Costs nothing but for the batches whose turn it is: each is decomposed once in k snapshots, and they take
        turns, so that no publish pays for all. Should it raise (no memory for scratch), the segment holds what it
        held, and the call may be repeated.
        """
        turn, batches = self._count % self._period, len(self._batches)
        for number in range(-(-turn * batches // self._period), -(-(turn + 1) * batches // self._period)):
            self._absorb(number)
        self._count += 1  # only now: what went before changed no answer

    def runs(self, group: int, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut blocks ``first:stop`` of a group into runs that `pairs` can answer for at once."""
        begin, before = first, -1
        for number, batch in enumerate(self._batches):
            low, high = max(first, batch.first), min(stop, batch.stop)
            if batch.group != group or low >= high:
                continue
            if self._absorbed[number] != before and low > begin:
                yield begin, low
                begin = low
            before = self._absorbed[number]
        if begin < stop:
            yield begin, stop

    def pairs(self, group: int, first: int, stop: int) -> SegmentPairs:
        """The pairs of blocks ``first:stop`` of a group, of all snapshots published. Costs a copy, changes nothing.

        Rows of R are as good as the pairs they stand for: whoever solves the problem puts the newer ones beside them.

        Raises:
            ValueError: for blocks that the group has not, or that are no part of one of its `runs`.
        """
        count = self._groups[group].count
        if not 0 <= first <= stop <= count:
            raise ValueError(f"blocks {first}:{stop} are not in a group of {count}")
        if len(list(self.runs(group, first, stop))) > 1:
            raise ValueError(f"blocks {first}:{stop} of group {group} are in more than one run")
        absorbed = next(
            held
            for held, batch in zip(self._absorbed, self._batches, strict=True)
            if batch.group == group and batch.first <= first < batch.stop
        )
        return SegmentPairs(
            factor=self._factors[group][first:stop].to("cpu", copy=True),
            vectors=self._vectors(group, first, stop, absorbed, self._vector_count()).to("cpu").contiguous(),
            absorbed=absorbed,
            last=self._last_of(group, first, stop),
            snapshot_epsilon=torch.finfo(self._ring.dtype).eps,
        )

    def scatter(self, group: int, first: int, stop: int, values: Tensor, out: Tensor) -> None:
        """Write the elements of blocks ``first:stop`` of a group into `out`; its other elements stay.

        Args:
            group: the group's index in the plan.
            first: the first block.
            stop: behind the last block.
            values: (stop - first, s), of any floating dtype, on any device.
            out: (n,) of any floating dtype, on any device.

        Raises:
            ValueError: for other shapes.
        """
        blocks = self._groups[group]
        if not 0 <= first <= stop <= blocks.count or values.shape != (stop - first, blocks.size):
            raise ValueError(f"{tuple(values.shape)} is not the shape of blocks {first}:{stop}")
        if out.shape != (self.size,) or not out.is_floating_point():
            raise ValueError(f"out must be {self.size} floating numbers")
        scatter(values, blocks, first, stop, out)

    def read_last_velocity(self, start: int, stop: int) -> Tensor:
        """(stop - start,) float64: the last change of elements ``start:stop``, on this segment's device.

        Raises:
            ValueError: while there are fewer than 2 snapshots.
        """
        if self._count < 2:
            raise ValueError(f"a velocity needs 2 snapshots, not {self._count}")
        before = self._ring[self._row(self._count - 2), start:stop]
        return _difference(self.last[start:stop].double(), before.double())

    def _last_of(self, group: int, first: int, stop: int) -> Tensor:
        blocks = self._groups[group]
        last = torch.zeros((1, stop - first, blocks.size), dtype=torch.float64, device=self.device)
        if self._count:
            gather(self.last[None], blocks, first, stop, last)
        return last[0].to("cpu")

    def _absorb(self, number: int) -> None:
        """Bring one batch's R up to date, the tail left out."""
        batch, ready = self._batches[number], self._ready()
        if ready <= self._absorbed[number]:
            return
        held = self._factors[batch.group][batch.first : batch.stop]
        new = self._vectors(batch.group, batch.first, batch.stop, self._absorbed[number], ready + 1)
        held.copy_(absorb(held, new, self.forgetting))
        self._absorbed[number] = ready

    def _vectors(self, group: int, first: int, stop: int, begin: int, end: int) -> Tensor:
        """(stop - first, end - begin, s) float64: vectors ``begin:end`` of the segment, which the ring must hold."""
        blocks, snapshots = self._groups[group], end - begin + self._lag if begin < end else 0
        values = torch.empty((snapshots, stop - first, blocks.size), dtype=torch.float64, device=self.device)
        done = 0
        while done < snapshots:  # twice where the snapshots go around the ring's end
            row = self._row(begin + done)
            some = min(snapshots - done, len(self._ring) - row)
            gather(self._ring[row : row + some], blocks, first, stop, values[done : done + some])
            done += some
        if self._lag and snapshots:
            values = _difference(values[1:], values[:-1])
        return values.transpose(0, 1)

    def _vector_count(self) -> int:
        return max(0, self._count - self._lag)

    def _ready(self) -> int:
        """Pairs that belong in R: all but the tail."""
        return max(0, self._vector_count() - 1 - self.tail)

    def _row(self, snapshot: int) -> int:
        return (self._first_row + snapshot) % len(self._ring)

    def _cut(self) -> Iterator[_Batch]:
        for index, group in enumerate(self._groups):
            step = batch_blocks(group.size, self._period, self.device)
            for first in range(0, group.count, step):
                yield _Batch(index, first, min(first + step, group.count))


def _difference(later: Tensor, earlier: Tensor) -> Tensor:
    """Of float64 numbers; held at the largest one where it overflows."""
    limit = torch.finfo(later.dtype).max
    return (later - earlier).clamp_(-limit, limit)
