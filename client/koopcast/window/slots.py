"""The stored snapshots of a window, and which of them are held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from koopcast.window.boxes import Box, StridedBox

__all__ = ["Slots"]

_LINE: Final = 64
"""Bytes in a line of the cache. Velocities start with one: what straddles two is read at half the speed."""


class Slots:
    """A ring of velocities, the last snapshot and a spare one.

    Attributes:
        velocities: (M, n) by slot.
        last: (n,) the newest snapshot.
        spare: (n,) where the next one is written.
        working: the dtype that differences are made in.
        count: velocities held.
        has_last: whether a snapshot is held.
        face: 0 or 1, the other one with every snapshot; for who keeps something of the last two apart.
    """

    def __init__(
        self,
        size: int,
        rows: int,
        *,
        snapshot_dtype: torch.dtype,
        window_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate; nothing is held.

        Args:
            size: n, elements in a snapshot.
            rows: M, velocities in a full ring.
            snapshot_dtype: of `last` and `spare`.
            window_dtype: of the velocities.
            device: where.
        """
        padded = torch.empty((rows, _padded(size, window_dtype)), dtype=window_dtype, device=device)
        self.velocities = padded[:, :size]
        self.last = torch.empty(size, dtype=snapshot_dtype, device=device)
        self.spare = torch.empty_like(self.last)
        self.working = torch.promote_types(torch.promote_types(window_dtype, snapshot_dtype), torch.float32)
        self.clear()

    @staticmethod
    def bytes_needed(size: int, rows: int, *, snapshot_dtype: torch.dtype, window_dtype: torch.dtype) -> int:
        """Bytes that stay allocated."""
        velocities = rows * _padded(size, window_dtype) * window_dtype.itemsize
        return velocities + 2 * size * snapshot_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Equals `bytes_needed`."""
        return self.velocities.untyped_storage().nbytes() + self.last.nbytes + self.spare.nbytes

    def pin(self) -> None:
        """Page-lock the snapshots, before any is held: copies to and from a GPU then need not be waited for."""
        self.last, self.spare = self.last.pin_memory(), self.spare.pin_memory()

    def clear(self) -> None:
        """Hold nothing."""
        self._next = 0  # the slot the next velocity goes to
        self.count = 0
        self.has_last = False
        self.face = 0

    def begin(self) -> tuple[int, int]:
        """Make room for a velocity: its slot, and how many will be held with it, in slots ``0:that``.

        A full ring forgets its oldest one here, before it is overwritten. The first snapshot brings no velocity: 0.
        """
        if not self.has_last:
            return 0, 0
        held = min(self.count + 1, len(self.velocities))
        self.count = held - 1
        return self._next, held

    def store(self, box: Box, slot: int) -> None:
        """Write a box's new velocity, held at the largest number of its dtype, into its slot."""
        weights, before, stored = box.of(self.spare), box.of(self.last), self.velocities[slot]
        limit = torch.finfo(stored.dtype).max
        if isinstance(box, StridedBox) and stored.dtype == weights.dtype == self.working:
            torch.sub(weights, before, out=box.of(stored)).clamp_(-limit, limit)
            return
        difference = weights.to(self.working).sub(before.to(self.working))
        box.write(stored, difference.clamp_(-limit, limit))

    def finish(self, held: int) -> None:
        """Take what stands in `spare` as the last snapshot, now that its velocity is stored."""
        if held:
            self._next = (self._next + 1) % len(self.velocities)
        self.spare, self.last, self.face = self.last, self.spare, 1 - self.face
        self.count, self.has_last = held, True

    @property
    def newest(self) -> int:
        """The slot of the newest velocity."""
        return (self._next - 1) % len(self.velocities)

    def order(self) -> list[int]:
        """Slots of the velocities held, oldest first."""
        return [slot for run in self.runs() for slot in range(run.start, run.stop)]

    def runs(self) -> Iterator[slice]:
        """The same as two ranges: the oldest stand behind the newest."""
        rows = len(self.velocities)
        first = (self._next - self.count) % rows
        before_seam = min(self.count, rows - first)
        yield slice(first, first + before_seam)
        yield slice(0, self.count - before_seam)


def _padded(size: int, dtype: torch.dtype) -> int:
    line = _LINE // dtype.itemsize
    return -(-size // line) * line
