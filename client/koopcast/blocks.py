"""Blocks of a snapshot: where their elements lie, and what they are called.

Made by `koopcast.partition`. No arrays here: the window reads a group's blocks through its views.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["BlockGroup", "BlockPlan", "IndexedView", "Stretch", "StridedView"]


@dataclass(frozen=True, slots=True)
class StridedView:
    """A part of every block of a group, as a strided view of the flat snapshot.

    The view has the shape ``block_shape + element_shape`` and the strides ``block_strides + element_strides``.
    Block b of the group is the b-th index of the block dimensions, in row-major order.

    Attributes:
        offset: the first element.
        block_shape: its product is the number of blocks of the group.
        block_strides: one for each size of `block_shape`.
        element_shape: its product is the number of elements that this part gives to a block.
        element_strides: one for each size of `element_shape`.
    """

    offset: int
    block_shape: tuple[int, ...]
    block_strides: tuple[int, ...]
    element_shape: tuple[int, ...]
    element_strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IndexedView:
    """Likewise, for blocks that are not evenly spaced: block b has ``flat[starts[b] : starts[b] + elements]``.

    Attributes:
        starts: the first element of each block.
        elements: elements that this part gives to a block.
    """

    starts: tuple[int, ...]
    elements: int


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Blocks of one size, worked on as one batch.

    A block's vector is its share of every part, one part after the other, each in row-major order.

    Attributes:
        count: number of blocks.
        size: elements in a block.
        parts: where they lie.
        numbers: (count) the job-wide numbers of its blocks, rising; a range wherever they are evenly spaced.
    """

    count: int
    size: int
    parts: tuple[StridedView | IndexedView, ...]
    numbers: Sequence[int]


class Stretch(NamedTuple):
    """Consecutive blocks that are named alike, and have one size.

    ``"whole"`` is named `label`; ``"numbered"`` by its position, ``label[i]``; ``"chunk"``, i.e. chunk
    ``i % chunks`` of unit ``i // chunks``, by the unit and the range of its row, ``label[u][start:stop]``.
    """

    size: int
    label: str
    kind: Literal["whole", "numbered", "chunk"]
    chunks: int = 1
    start: int = 0
    length: int = 0

    def name(self, position: int) -> str:
        """Name of the block at a position, counted from the first of the stretch."""
        if self.kind == "whole":
            return self.label
        if self.kind == "numbered":
            return f"{self.label}[{position}]"
        unit, chunk = divmod(position, self.chunks)
        start = self.start + chunk * self.length
        return f"{self.label}[{unit}][{start}:{start + self.length}]"


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The blocks of a job.

    They are numbered from 0, in the order of the tensors (those of a matrix stand where the matrix stands). Within a
    matrix, nodes follow the units; of quasi-nodes, first all but the last chunk of every unit, unit by unit, then
    the last chunk of every unit.

    Attributes:
        groups: the blocks, by group. Few: at most two a tensor, whatever its units.
        block_count: number of blocks.
        elements: elements of a snapshot; the blocks together hold each once.
        stretches: how blocks are named, by rising numbers.
        firsts: the first number of each stretch.
    """

    groups: tuple[BlockGroup, ...]
    block_count: int
    elements: int
    stretches: tuple[Stretch, ...] = field(repr=False)
    firsts: tuple[int, ...] = field(repr=False)

    def name(self, number: int) -> str:
        """What reports call a block; made when asked for.

        "network"; a tensor's name; "fc1[17]", a node, by the unit of matrix ``fc1.weight``; "fc1[17][20:30]", a
        quasi-node, by the range of the unit's row; "fc1.weight[123]", a weight, by its flat index. The ending
        ".weight" is dropped from a matrix's name unless the rest names another tensor. Names are unique as long as
        no tensor is itself named like a node ("fc1[17]").

        Raises:
            IndexError: no such block.
        """
        stretch, position = self._locate(number)
        return stretch.name(position)

    def size(self, number: int) -> int:
        """Elements in a block.

        Raises:
            IndexError: no such block.
        """
        return self._locate(number)[0].size

    def _locate(self, number: int) -> tuple[Stretch, int]:
        if not 0 <= number < self.block_count:
            raise IndexError(f"block {number} of {self.block_count}")
        index = bisect.bisect_right(self.firsts, number) - 1
        return self.stretches[index], number - self.firsts[index]
