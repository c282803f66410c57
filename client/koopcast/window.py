"""The window: the last snapshots of one job, their Gram matrices, and combinations of them.

::

    spare ── publish() ──> velocities (ring)      d = spare - last, over the oldest one
      ^                    Gram row               <d, every stored velocity>, float64
      └───── swap ──────── last                   spare and last change places

This is the only code that touches arrays as long as the model (design §1: the window moves bytes, the
operator thinks). It runs on the service and, for trainer-held windows, inside the trainer, so it knows of
neither.

Consecutive differences ("velocities") are stored, and the last snapshot in full. Differences of close floats
are exact, half precision keeps its few bits for what changes, and no large common part eats the digits of a
Gram.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Window", "WindowProducts"]

_PIECE_ON_CPU = 16_384
"""Elements worked on at once, so that a piece of every stored velocity stays in the cache."""
_SCRATCH_BYTES = 48 << 20
"""Scratch on other devices, in bytes."""
_SHORT_ON_CPU = 512
"""Blocks shorter than this are worked on many at once: there a block's own overhead outweighs grouping's."""
_SHORT_SHARE = 4
"""The same as a share of a piece, on devices where every call has a price, and at most on the CPU."""


class WindowProducts(NamedTuple):
    """All that an operator needs to know of a window, on the CPU. M velocities, oldest first; B blocks.

    Attributes:
        velocity_gram: (B, M, M) float64, <v_i, v_j>.
        velocity_dot_last: (B, M) float64, <v_j, w_last>.
        last_squared: (B,) float64, <w_last, w_last>; 0 before the first snapshot.
        snapshot_epsilon: relative spacing of the snapshots' dtype.
        window_epsilon: relative spacing of the stored velocities' dtype.
    """

    velocity_gram: Tensor
    velocity_dot_last: Tensor
    last_squared: Tensor
    snapshot_epsilon: float
    window_epsilon: float


class _Piece(NamedTuple):
    """Elements ``start:stop``: a part of one block, or several whole blocks ``first:end``."""

    start: int
    stop: int
    first: int
    end: int


class Window:
    """A bounded ring of velocities per block, one last and one spare snapshot.

    Not thread-safe. Writing a snapshot into `spare` costs the window nothing until `publish`.

    Attributes:
        size: n, elements in a snapshot.
        length: weight snapshots held when full; length - 1 velocities.
        block_count: B.
        device: where all of it lives.
    """

    def __init__(
        self,
        block_bounds: Sequence[int],
        length: int,
        *,
        snapshot_dtype: torch.dtype,
        window_dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate everything: `bytes_needed` bytes on `device`.

        Args:
            block_bounds: B + 1 rising numbers from 0 to n; block b is elements bounds[b] to bounds[b + 1].
            length: weight snapshots to hold, at least 2.
            snapshot_dtype: of `last` and `spare`.
            window_dtype: of the stored velocities.
            device: a torch device.

        Raises:
            ValueError: for bounds, a length or a dtype that make no window.
        """
        bounds = [int(bound) for bound in block_bounds]
        if len(bounds) < 2 or bounds[0] != 0 or any(a > b for a, b in itertools.pairwise(bounds)):
            raise ValueError("block_bounds must rise from 0 to the number of elements")
        _check_shape(bounds[-1], length, snapshot_dtype, window_dtype)
        self.size, self.length, self.block_count = bounds[-1], length, len(bounds) - 1
        self.device = torch.device(device)
        rows = length - 1

        def float64(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self._velocities = torch.empty((rows, self.size), dtype=window_dtype, device=self.device)
        self._last = torch.empty(self.size, dtype=snapshot_dtype, device=self.device)
        self._spare = torch.empty_like(self._last)
        self._gram = float64(self.block_count, rows, rows)  # in ring order, as are the velocities
        self._dot_last = float64(self.block_count, rows)
        self._last_squared = float64(self.block_count)
        self._lengths = torch.tensor(bounds, device=self.device).diff()
        on_cpu = self.device.type == "cpu"
        piece = _PIECE_ON_CPU if on_cpu else max(1, _SCRATCH_BYTES // (8 * 3 * (rows + 2)))
        short = max(1, piece // _SHORT_SHARE)
        self._pieces = list(_pieces(bounds, piece, min(short, _SHORT_ON_CPU) if on_cpu else short))
        self._piece = max((p.stop - p.start for p in self._pieces), default=0)
        self.clear()

    @staticmethod
    def bytes_needed(
        size: int, length: int, *, snapshot_dtype: torch.dtype, window_dtype: torch.dtype, block_count: int
    ) -> int:
        """Bytes that such a window allocates and keeps; `publish` and `combine` need < 64 MiB more."""
        _check_shape(size, length, snapshot_dtype, window_dtype)
        rows = length - 1
        per_element = rows * window_dtype.itemsize + 2 * snapshot_dtype.itemsize
        per_block = 8 * (rows * rows + rows + 1) + 8
        return size * per_element + block_count * per_block

    @property
    def nbytes(self) -> int:
        """Bytes held; equals `bytes_needed`."""
        held = (self._velocities, self._last, self._spare)
        small = (self._gram, self._dot_last, self._last_squared, self._lengths)
        return sum(tensor.nbytes for tensor in held + small)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window: 0 to `length`."""
        return self._count + 1 if self._has_last else 0

    @property
    def spare(self) -> Tensor:
        """(n,) where the coming snapshot is to be written; another array after each `publish`."""
        return self._spare

    @property
    def last(self) -> Tensor:
        """(n,) the last published snapshot; meaningless while `snapshots_held` is 0. Not to be written."""
        return self._last

    def clear(self) -> None:
        """Forget all snapshots; the next `publish` is the first one."""
        self._next = 0  # the slot the next velocity goes to
        self._count = 0  # velocities held
        self._has_last = False

    def publish(self) -> None:
        """Take what stands in `spare` as the newest snapshot.

        Reads every stored velocity once. Should it raise (no memory for scratch, an interrupt), the window
        holds what it held, except that a full one has lost its oldest snapshot. The values must be finite.
        """
        rows, slot = self.length - 1, self._next
        used = (
            min(self._count + 1, rows) if self._has_last else 0
        )  # velocities held after this: slots 0 to used
        scratch = torch.empty((used + 2, self._piece), dtype=torch.float64, device=self.device)
        products = torch.zeros((self.block_count, used + 1, 2), dtype=torch.float64, device=self.device)
        if used:
            self._count = used - 1  # a full ring forgets its oldest velocity here, before it is overwritten
        for piece in self._pieces:
            self._accumulate(piece, slot, used, scratch, products)
        if used:
            self._gram[:, slot, :used] = products[:, :used, 0]
            self._gram[:, :used, slot] = products[:, :used, 0]
            self._dot_last[:, :used] = products[:, :used, 1]
            self._next = (slot + 1) % rows
        self._last_squared.copy_(products[:, used, 1])
        self._spare, self._last = self._last, self._spare
        self._count, self._has_last = used, True

    def products(self) -> WindowProducts:
        """The Gram matrices and their kin, copied to the CPU, velocities oldest first."""
        order = torch.tensor(self._order(), dtype=torch.long, device=self.device)
        gram = self._gram[:, order][:, :, order]
        squared = self._last_squared if self._has_last else torch.zeros_like(self._last_squared)
        return WindowProducts(
            velocity_gram=gram.to("cpu", copy=True),
            velocity_dot_last=self._dot_last[:, order].to("cpu", copy=True),
            last_squared=squared.to("cpu", copy=True),
            snapshot_epsilon=torch.finfo(self._last.dtype).eps,
            window_epsilon=torch.finfo(self._velocities.dtype).eps,
        )

    def combine(self, velocity_coefficients: Tensor, last_coefficients: Tensor | None, out: Tensor) -> None:
        """Write ``out[block] = sum_j c_j v_j + c_last w_last``.

        Accumulates in float32, or in float64 where velocities or snapshots are float64. Blocks whose
        coefficients are all zero give zeros and are not read.

        Args:
            velocity_coefficients: (B, M) float64, velocities oldest first, M = snapshots_held - 1.
            last_coefficients: (B,) float64, or None for zeros.
            out: (n,) on this window's device, of any floating dtype; must not be part of the window.

        Raises:
            ValueError: for other shapes, or out on another device.
        """
        coefficients = self._in_ring_order(velocity_coefficients, last_coefficients)
        if out.shape != (self.size,) or out.device != self._last.device or not out.is_floating_point():
            raise ValueError(f"out must be {self.size} floating numbers on {self._last.device}")
        moving = (coefficients != 0).any(dim=1)
        moving_list = moving.tolist()
        dtype = torch.promote_types(
            torch.promote_types(self._velocities.dtype, self._last.dtype), torch.float32
        )
        on_device = coefficients.to(self.device, dtype)
        last_list = coefficients[:, -1].tolist()
        scratch = torch.empty((coefficients.shape[1], self._piece), dtype=dtype, device=self.device)
        for piece in self._pieces:
            target = out[piece.start : piece.stop]
            if not any(moving_list[piece.first : piece.end]):
                target.zero_()
            elif piece.end - piece.first == 1:
                self._combine_one(piece, on_device[piece.first], last_list[piece.first], scratch, target)
            else:
                self._combine_group(piece, on_device[piece.first : piece.end], scratch, target)

    def _accumulate(self, piece: _Piece, slot: int, used: int, scratch: Tensor, products: Tensor) -> None:
        """Store this piece's velocity; add its products with the new velocity (0) and the new weights (1)."""
        elements = slice(piece.start, piece.stop)
        width = piece.stop - piece.start
        rows, difference = scratch[: used + 1, :width], scratch[used + 1, :width]
        weights = rows[used].copy_(self._spare[elements])
        if used:
            stored = self._velocities[:, elements]
            limit = torch.finfo(stored.dtype).max
            torch.sub(weights, difference.copy_(self._last[elements]), out=difference)
            stored[slot].copy_(difference.clamp_(-limit, limit))
            rows[:used].copy_(stored[:used])
            difference = rows[slot]
        if piece.end - piece.first == 1:
            target = products[piece.first]
            if used:
                target[:, 0] += torch.mv(rows, difference)
            target[:, 1] += torch.mv(rows, weights)
            return
        lengths = self._lengths[piece.first : piece.end]
        by_weights = _segment_sums(rows * weights, lengths)
        if used:
            products[piece.first : piece.end, :, 0] = _segment_sums(rows.mul_(difference.clone()), lengths)
        products[piece.first : piece.end, :, 1] = by_weights

    def _combine_one(
        self, piece: _Piece, coefficients: Tensor, last: float, scratch: Tensor, target: Tensor
    ) -> None:
        """One block's part of `combine`; bound by memory bandwidth."""
        elements, width = slice(piece.start, piece.stop), piece.stop - piece.start
        velocities = self._velocities[: len(coefficients) - 1, elements]
        direct = target.dtype == scratch.dtype and target.is_contiguous()
        result = target if direct else scratch[-1, :width]
        if len(coefficients) == 1:
            result.zero_()
        elif velocities.dtype == scratch.dtype:
            torch.mv(velocities.t(), coefficients[:-1], out=result)
        else:
            torch.mv(scratch[:-1, :width].copy_(velocities).t(), coefficients[:-1], out=result)
        if last:
            result.add_(self._last[elements], alpha=last)
        if not direct:
            target.copy_(result)

    def _combine_group(self, piece: _Piece, coefficients: Tensor, scratch: Tensor, target: Tensor) -> None:
        """Many short blocks at once."""
        elements, width = slice(piece.start, piece.stop), piece.stop - piece.start
        terms = scratch[:, :width]
        terms[:-1].copy_(self._velocities[: terms.shape[0] - 1, elements])
        terms[-1].copy_(self._last[elements])
        lengths = self._lengths[piece.first : piece.end]
        terms.mul_(coefficients.t().repeat_interleave(lengths, dim=1, output_size=width))
        target.copy_(terms.sum(dim=0))

    def _order(self) -> list[int]:
        """Ring slots of the velocities held, oldest first."""
        rows = self.length - 1
        return [(self._next - self._count + i) % rows for i in range(self._count)]

    def _in_ring_order(self, velocity_coefficients: Tensor, last_coefficients: Tensor | None) -> Tensor:
        """(B, slots + 1) float64 on the CPU: by ring slot, zero where none is held; the last snapshot's last."""
        if velocity_coefficients.shape != (self.block_count, self._count):
            raise ValueError(
                f"velocity_coefficients must have shape {(self.block_count, self._count)}, "
                f"not {tuple(velocity_coefficients.shape)}"
            )
        order = self._order()
        ordered = torch.zeros((self.block_count, max(order, default=-1) + 2), dtype=torch.float64)
        ordered[:, order] = velocity_coefficients.to("cpu", torch.float64)
        if last_coefficients is not None:
            if last_coefficients.shape != (self.block_count,):
                raise ValueError(f"last_coefficients must have shape {(self.block_count,)}")
            ordered[:, -1] = last_coefficients.to("cpu", torch.float64)
        return ordered


def _check_shape(size: int, length: int, snapshot_dtype: torch.dtype, window_dtype: torch.dtype) -> None:
    if size < 1:
        raise ValueError("a window needs at least one element")
    if length < 2:
        raise ValueError(f"a window holds at least 2 snapshots, not {length}")
    for dtype in (snapshot_dtype, window_dtype):
        if not dtype.is_floating_point:
            raise ValueError(f"a window holds floating-point numbers, not {dtype}")


def _pieces(bounds: Sequence[int], piece: int, short: int) -> Iterator[_Piece]:
    """Cut ``0:n`` into pieces: long blocks into several, short neighbours gathered, empty blocks left out."""
    first = 0  # of the group being gathered
    for block, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop - start < short and stop - bounds[first] <= piece:
            continue
        if bounds[first] < start:
            yield _Piece(bounds[first], start, first, block)
        first = block
        if stop - start >= short:
            for begin in range(start, stop, piece):
                yield _Piece(begin, min(begin + piece, stop), block, block + 1)
            first = block + 1
    if bounds[first] < bounds[-1]:
        yield _Piece(bounds[first], bounds[-1], first, len(bounds) - 1)


def _segment_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """(rows, elements), lengths (S,) -> (S, rows): sums over consecutive stretches of elements."""
    sums: Tensor = torch.segment_reduce(values.t().contiguous(), "sum", lengths=lengths, axis=0, unsafe=True)
    return sums
