"""The Gram matrices of one group of blocks: a row with each new velocity.

Products are summed box by box, and the sums of boxes in float64. Inside a box, long blocks are multiplied in float32
and summed in short runs by torch's `sum`, which adds up pairs. (The dot products of BLAS are one running sum a lane;
once that is large, the many small terms of real gradients fall below its last digit. Measured on 65,536 elements, an
error of 2e-5.) The commonest kind, one long block of float32 numbers on the CPU, is in `koopcast.window.long`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup
from koopcast.window.boxes import Box, boxes_of

__all__ = ["GroupGram", "Incoming", "box_limit", "is_long"]

_FLOAT32_FROM: Final = 1 << 17
"""Blocks of so many elements have the products of their velocities rounded to float32.

The roundings are as good as independent, so that their sum falls with the root of their number. Measured from here
on, of |v_i| |v_j|: at most 2e-8 for numbers of about one size, 6e-8 where few large ones make up the sum, 4e-7 in the
worst case, all elements alike. The rounding of the snapshots puts more into the differences, 6e-8 |w| / |v|, likewise
averaged. In shorter blocks there is less to average, and less to gain.
"""
_MEAN_SQUARE: Final = 1e-30
"""Where squares are smaller on average, float32 products begin to lose digits to underflow."""
_BYTES_ON_CPU: Final = 4 << 20
"""Products of a box: they are written and read again, so they should stay in the cache."""
_ELEMENTS_ON_CPU: Final = 1 << 16
_BYTES_ON_DEVICES: Final = 24 << 20
"""The same where every call has a price."""


class Incoming(NamedTuple):
    """A new snapshot, and what it is multiplied with.

    Attributes:
        velocities: (m, n) the stored velocities by ring slot, the new one among them; m = 0 at first.
        slot: of the new one.
        weights: (n,) the new snapshot.
        before: (n,) the last one.
        face: which of the two places its own products go to; the other keeps those of the last one.
    """

    velocities: Tensor
    slot: int
    weights: Tensor
    before: Tensor
    face: int


def box_limit(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """Elements in a box for that many rows of products."""
    if device.type == "cpu":
        return max(1, min(_BYTES_ON_CPU // (dtype.itemsize * rows), _ELEMENTS_ON_CPU))
    return max(1, _BYTES_ON_DEVICES // (dtype.itemsize * rows))


def is_long(group: BlockGroup) -> bool:
    """Whether its products may be rounded to float32."""
    return group.size >= _FLOAT32_FROM


class GroupGram:
    """Products of one group's velocities with each other, and of the last weights.

    Attributes:
        boxes: the group, cut.
        velocity_rows: (B, M, M) float64 by ring slots: row i holds v_i's products with all that were held when
            v_i came. Those with later velocities are in their rows.
        weight_rows: (2, B, M) float64, <w_last, v_j>, by face; M = 0 where they are not asked for.
        weights_squared: (2, B) float64, <w_last, w_last>, by face.
    """

    def __init__(
        self, group: BlockGroup, rows: int, *, dtype: torch.dtype, with_state: bool, device: torch.device
    ) -> None:
        """Allocate `bytes_needed`.

        Args:
            group: blocks of more than `rows` elements.
            rows: M, velocities in a full window.
            dtype: of the velocities.
            with_state: whether products of velocities and weights are wanted.
            device: where.
        """
        self._rough = is_long(group) and dtype.itemsize <= 4 and not with_state
        self._smallest = _MEAN_SQUARE * group.size

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.velocity_rows = zeros(group.count, rows, rows)
        self.weight_rows = zeros(2, group.count, rows if with_state else 0)
        self.weights_squared = zeros(2, group.count)
        dtype = torch.float32 if self._rough else torch.float64
        self.boxes: Sequence[Box] = list(boxes_of(group, box_limit(self._scratch_rows(rows), dtype, device)))

    @staticmethod
    def bytes_needed(group: BlockGroup, rows: int, *, with_state: bool) -> int:
        """Bytes that stay allocated."""
        return 8 * group.count * (rows * rows + (2 * rows if with_state else 0) + 2)

    @property
    def nbytes(self) -> int:
        """Equals `bytes_needed`."""
        return self.velocity_rows.nbytes + self.weight_rows.nbytes + self.weights_squared.nbytes

    def take(self, new: Incoming, store: Callable[[Box], None]) -> None:
        """Add the row of a new velocity, and the products of the new weights.

        Args:
            new: the snapshot. Its velocity is not stored yet.
            store: stores the velocity of a box.
        """
        self._fill(new, store, self.boxes, rough=self._rough)
        if self._rough and not self._in_range(new):
            self._fill(new, store, self.boxes, rough=False)

    def _fill(
        self, new: Incoming, store: Callable[[Box], None], boxes: Sequence[Box], *, rough: bool
    ) -> None:
        self.velocity_rows[:, new.slot] = 0.0
        self.weight_rows[new.face] = 0.0
        self.weights_squared[new.face] = 0.0
        longest = max((box.elements for box in boxes), default=0)
        scratch = torch.empty(
            longest * self._scratch_rows(len(new.velocities)),
            dtype=torch.float32 if rough else torch.float64,
            device=new.weights.device,
        )
        for box in boxes:
            if len(new.velocities):
                store(box)
            self._add(new, box, scratch)

    def _scratch_rows(self, held: int) -> int:
        """The products, and where velocities are multiplied twice, they themselves in float64."""
        return max(1, held) * (2 if self.weight_rows.shape[-1] else 1)

    def _add(self, new: Incoming, box: Box, scratch: Tensor) -> None:
        """Add the products of a box, whose velocity is stored, in the dtype of `scratch`."""
        held, dtype, with_state = len(new.velocities), scratch.dtype, bool(self.weight_rows.shape[-1])
        scratch = scratch[: self._scratch_rows(held) * box.elements].view(-1, *box.shape)
        weights = box.of(new.weights).to(dtype)
        squared = _products(box, weights[None], weights, scratch[:1])
        box.by_block(self.weights_squared[new.face, :, None]).add_(squared)
        if not held:
            return
        products, stored = scratch[:held], box.of(new.velocities)
        if stored.dtype != dtype:
            stored = (scratch[held:] if with_state else products).copy_(stored)
        velocity = box.of(new.velocities[new.slot]).to(dtype)
        row = box.by_block(self.velocity_rows[:, new.slot, :held])
        row.add_(_products(box, stored, velocity, products))
        if with_state:
            row = box.by_block(self.weight_rows[new.face, :, :held])
            row.add_(_products(box, stored, weights, products))

    def _in_range(self, new: Incoming) -> bool:
        """Whether no product of float32 numbers overflowed, and squares are so large that few underflowed."""
        squares = [self.weights_squared[new.face]]
        rows = [self.weights_squared[new.face, :, None]]
        if len(new.velocities):
            squares.append(self.velocity_rows[:, new.slot, new.slot])
            rows.append(self.velocity_rows[:, new.slot, : len(new.velocities)])
        large = all(bool((square >= self._smallest).all()) for square in squares)
        return large and all(bool(row.isfinite().all()) for row in rows)


def _products(box: Box, rows: Tensor, factor: Tensor, scratch: Tensor) -> Tensor:
    """(k, *shape), (*shape) -> (one axis a block dimension, k): products of each row with `factor`, block by block.

    `scratch` is like the rows, or the rows themselves.
    """
    if box.is_one_block and rows.dtype == torch.float64:
        return torch.mv(rows.flatten(1), factor.flatten()).view(*(1 for _ in box.counts), -1)
    return box.sums(torch.mul(rows, factor, out=scratch))
