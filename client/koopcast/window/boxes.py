"""Groups of blocks, cut into boxes that stay in the cache.

A box is a rectangular range of a group's blocks and of their elements. Gram rows and combinations are made box by
box on strided views of the ring: every stored number is read where it lies, once, and what is made of it on the way
stays small.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, IndexedView, StridedView

__all__ = ["Box", "StridedBox", "boxes_of"]

_RUN: Final = 1024
"""Few enough that their sum's own rounding is averaged away over the runs, enough that runs cost nothing."""


@dataclass(frozen=True, slots=True)
class Box(ABC):
    """A rectangular range of a group. Its axes stand in the order of memory: the widest stride first.

    Attributes:
        shape: length of each axis.
        counts: length of each of the block dimensions of the group; their product is the number of blocks.
        blocks: the box's range along each of them.
        block_axes: where among the axes each block dimension is.
        element_axes: where the others are.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    blocks: tuple[slice, ...]
    block_axes: tuple[int, ...]
    element_axes: tuple[int, ...]

    @abstractmethod
    def of(self, flat: Tensor) -> Tensor:
        """(..., n) -> (..., *shape): its elements of flat snapshots."""

    @abstractmethod
    def write(self, flat: Tensor, values: Tensor) -> None:
        """Put values of `shape`, of any dtype, into a flat snapshot (n,)."""

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def is_one_block(self) -> bool:
        """Whether all elements belong to the same block."""
        return all(self.shape[axis] == 1 for axis in self.block_axes)

    def by_block(self, values: Tensor) -> Tensor:
        """(blocks of the group, k) -> (one axis a block dimension, k): a view of the box's own."""
        return values.view(*self.counts, values.shape[-1])[self.blocks]

    def spread(self, values: Tensor) -> Tensor:
        """(one axis a block dimension, k) -> (k, one axis an axis): a view to multiply elements with."""
        own = values.movedim(-1, 0)
        own = own[(..., *(None for _ in self.element_axes))]
        axes = (*self.block_axes, *self.element_axes)
        return own.permute(0, *(1 + axes.index(axis) for axis in range(len(axes))))

    def sums(self, values: Tensor) -> Tensor:
        """(k, *shape) contiguous -> (one axis a block dimension, k) float64: sums over the elements of each block.

        Narrower numbers are added up as they are in runs of neighbours, and the sums of runs in float64.
        """
        elements = [1 + axis for axis in self.element_axes]
        if values.dtype == torch.float64 or values.dim() - 1 not in elements:
            sums = values.sum(dim=elements).double()
        else:
            runs = self.shape[-1] // _RUN
            even, rest = values[..., : runs * _RUN], values[..., runs * _RUN :]
            short_sums = even.view(*values.shape[:-1], runs, _RUN).sum(dim=-1)
            sums = short_sums.sum(dim=elements, dtype=torch.float64) + rest.sum(dim=elements)
        order = sorted(self.block_axes)
        return sums.permute(*(1 + order.index(axis) for axis in self.block_axes), 0)


@dataclass(frozen=True, slots=True)
class StridedBox(Box):
    """A box of evenly spaced blocks.

    Attributes:
        offset: first element, in the flat snapshot.
        strides: of each axis, in elements.
    """

    offset: int
    strides: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """See `Box.of`: a view."""
        *leading, _ = flat.shape
        *leading_strides, step = flat.stride()
        return flat.as_strided(
            (*leading, *self.shape),
            (*leading_strides, *(stride * step for stride in self.strides)),
            flat.storage_offset() + self.offset * step,
        )

    def write(self, flat: Tensor, values: Tensor) -> None:
        """See `Box.write`."""
        self.of(flat).copy_(values)


@dataclass(frozen=True, slots=True)
class GatheredBox(Box):
    """A box of whole short blocks that lie anywhere. Its elements are gathered: there are few of them.

    Attributes:
        starts: first element of each block, in the flat snapshot.
    """

    starts: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """See `Box.of`: a copy."""
        return flat.index_select(-1, self._indices(flat.device)).view(*flat.shape[:-1], *self.shape)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """See `Box.write`."""
        flat.index_copy_(0, self._indices(flat.device), values.to(flat.dtype).flatten())

    def _indices(self, device: torch.device) -> Tensor:
        starts = torch.tensor(self.starts, dtype=torch.long, device=device)
        return (starts[:, None] + torch.arange(self.shape[1], device=device)).flatten()


def boxes_of(group: BlockGroup, limit: int) -> Iterator[Box]:
    """Cut a group into boxes of at most `limit` elements, at least 1. Every element is in one of them.

    A gathered block is never cut; see `koopcast.blocks.IndexedView`.
    """
    for part in group.parts:
        if isinstance(part, StridedView):
            yield from _cut(part, limit)
        elif part.elements:
            yield from _gather(part, limit)


def _gather(part: IndexedView, limit: int) -> Iterator[GatheredBox]:
    step = max(1, limit // part.elements)
    for first in range(0, len(part.starts), step):
        starts = part.starts[first : first + step]
        yield GatheredBox(
            shape=(len(starts), part.elements),
            counts=(len(part.starts),),
            blocks=(slice(first, first + len(starts)),),
            block_axes=(0,),
            element_axes=(1,),
            starts=starts,
        )


def _cut(part: StridedView, limit: int) -> Iterator[StridedBox]:
    """Cut along the widest strides first, so that a box is made of long runs of memory."""
    shape, strides = part.block_shape + part.element_shape, part.block_strides + part.element_strides
    if math.prod(shape) == 0:
        return
    # Axes of length 1 come first: their strides say nothing.
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -strides[axis]))
    spans: list[list[slice]] = [[] for _ in shape]
    room = limit
    for axis in reversed(order):
        size = shape[axis]
        step = -(-size // -(-size // room))  # even cuts
        spans[axis] = [slice(first, min(first + step, size)) for first in range(0, size, step)]
        room = max(1, room // step)
    dimensions = len(part.block_shape)
    places = tuple(order.index(axis) for axis in range(len(shape)))
    for span in itertools.product(*spans):
        yield StridedBox(
            shape=tuple(span[axis].stop - span[axis].start for axis in order),
            counts=part.block_shape,
            blocks=span[:dimensions],
            block_axes=places[:dimensions],
            element_axes=places[dimensions:],
            offset=part.offset + sum(cut.start * stride for cut, stride in zip(span, strides, strict=True)),
            strides=tuple(strides[axis] for axis in order),
        )
