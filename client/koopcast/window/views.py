"""Blocks of flat snapshots: copies of their elements as batches, and batches written back.

A block's elements seldom lie side by side: a unit's weights are a row or a column of one tensor, its bias an
entry of another. Whatever the shape of a group, its blocks are read and written as one batch here, through
strided views of the flat array. There is no loop over blocks, and nothing beside the batch is copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, IndexedView, StridedView

__all__ = ["gather", "scatter"]


class _Box(NamedTuple):
    """Consecutive blocks that one strided view covers: `blocks` of them, from `offset` on."""

    offset: int
    blocks: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def gather(flat: Tensor, group: BlockGroup, first: int, stop: int, out: Tensor) -> None:
    """Copy blocks ``first:stop`` of `group` out of some flat snapshots.

    Args:
        flat: (rows, n), its elements side by side in each row.
        group: some blocks of the plan that lays out the n elements.
        first: the first block, within the group.
        stop: behind the last block.
        out: (rows, stop - first, group.size), of any dtype: the values are converted.
    """
    column = 0
    for part in group.parts:
        if isinstance(part, IndexedView):
            width = part.elements
            out[:, :, column : column + width] = flat[:, _indices(part, first, stop, flat.device)]
        else:
            width = math.prod(part.element_shape)
            for target, view in _matches(out[:, :, column : column + width], flat, part, first, stop):
                target.copy_(view)
        column += width


def scatter(values: Tensor, group: BlockGroup, first: int, stop: int, flat: Tensor) -> None:
    """Write blocks ``first:stop`` of `group` into a flat array; its other elements stay.

    Args:
        values: (stop - first, group.size), of any dtype: they are converted.
        group: some blocks of the plan that lays out the n elements.
        first: the first block, within the group.
        stop: behind the last block.
        flat: (n,), its elements side by side.
    """
    rows, batch, column = flat.unsqueeze(0), values.unsqueeze(0), 0
    for part in group.parts:
        if isinstance(part, IndexedView):
            width = part.elements
            flat[_indices(part, first, stop, flat.device)] = values[:, column : column + width].to(
                flat.device, flat.dtype
            )
        else:
            width = math.prod(part.element_shape)
            for source, view in _matches(batch[:, :, column : column + width], rows, part, first, stop):
                view.copy_(source)
        column += width


def _indices(part: IndexedView, first: int, stop: int, device: torch.device) -> Tensor:
    """(stop - first, elements): where in the flat snapshot the elements are."""
    starts = torch.tensor(part.starts[first:stop], dtype=torch.long, device=device)
    return starts[:, None] + torch.arange(part.elements, device=device)


def _matches(
    batch: Tensor, flat: Tensor, part: StridedView, first: int, stop: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a batch (rows, blocks, elements), each with the view of `flat` (rows, n) that corresponds to it."""
    done = 0
    for box in _boxes(part.offset, part.block_shape, part.block_strides, first, stop):
        shape = (len(batch), *box.shape, *part.element_shape)
        strides = (flat.stride(0), *box.strides, *part.element_strides)
        view = flat.as_strided(shape, strides, flat.storage_offset() + box.offset)
        yield batch[:, done : done + box.blocks].view(shape), view
        done += box.blocks


def _boxes(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], first: int, stop: int
) -> Iterator[_Box]:
    """Cut ``first:stop`` of an array of blocks into boxes, in order: at most 2 d - 1 of them in d dimensions."""
    if not shape:  # a single block
        if first < stop:
            yield _Box(offset, 1, (), ())
        return
    inner = math.prod(shape[1:])
    while first < stop:
        row, within = divmod(first, inner)
        start = offset + row * strides[0]
        rows = (stop - first) // inner
        if within or not rows:
            end = min(stop, (row + 1) * inner)
            yield from _boxes(start, shape[1:], strides[1:], within, end - row * inner)
        else:
            end = first + rows * inner
            yield _Box(start, end - first, (rows, *shape[1:]), strides)
        first = end
