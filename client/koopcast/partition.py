"""How a snapshot is divided into blocks, each with a Koopman operator of its own.

A *block* is a set of elements of the flat snapshot: all of it, a tensor, a unit of the network, a part of a unit's
inputs, or one weight (Dogra & Redman, NeurIPS 2020, section 3, compare these). Blocks of one size that lie alike
form a *group*, and a group is worked on as one batch. A group does not list its elements: it says where they lie as
strided views of the snapshot, so that a layer of 100,000 units is planned as quickly as one of ten.

====================  ==================================================================================
partition             blocks
====================  ==================================================================================
``"network"``         one
``"tensor"``          one a tensor
``"node"``            one a unit of a matrix: its row, and its entry of each vector that belongs to the matrix
``"quasi_node"``      a node's row in chunks; its entries of the vectors belong to the last chunk
``"weight"``          one an element
====================  ==================================================================================

A *matrix* is a tensor of at least two dimensions. Its units are counted by `TensorSpec.node_axis` (default 0, as in
``torch.nn.Linear``). A vector belongs to the matrix that its `TensorSpec.node_of` names. Where that is empty, the
name decides: a matrix whose name holds "weight" owns the vector of the same name with "bias" instead
(``x.weight`` and ``x.bias``, ``weight_ih_l0`` and ``bias_ih_l0``), if that has as many entries as the matrix has
units. For ``"node"`` and ``"quasi_node"``, a tensor that is no matrix and belongs to none is one block.

Each element belongs to exactly one block. Sizes, offsets and strides are in elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from koopcast.blocks import BlockGroup, BlockPlan, IndexedView, Stretch, StridedView
from koopcast.errors import ArgumentValueError
from koopcast.wire import TensorSpec

__all__ = ["BlockGroup", "BlockPlan", "IndexedView", "StridedView", "plan_blocks"]

_SHORT: Final = 512
"""Whole tensors of at most so many elements share a group with others of their size; longer ones fill a batch."""


def plan_blocks(
    specs: Mapping[str, TensorSpec], partition: str, quasi_node_inputs: int | None = None
) -> BlockPlan:
    """Divide a job's snapshots into blocks.

    A chunk of a quasi-node holds `quasi_node_inputs` consecutive elements of the unit's row (all axes but
    `node_axis`, flattened), the last one what is left. Where `node_axis` is not 0, what lies behind that axis stays
    whole, so that a chunk is evenly spaced: of a transposed convolution's kernel (inputs, units, height, width), a
    chunk has as many inputs as fit in `quasi_node_inputs` elements, at least one.

    Args:
        specs: name to spec, in the order in which the tensors lie in a snapshot.
        partition: ``"network"``, ``"tensor"``, ``"node"``, ``"quasi_node"`` or ``"weight"``.
        quasi_node_inputs: for ``"quasi_node"``, elements in a chunk, at least 1. Not read otherwise.

    Returns:
        The plan. It takes time proportional to the number of tensors, not of blocks.

    Raises:
        ArgumentValueError: an unknown partition; `quasi_node_inputs` missing or below 1; and whatever the
            partition, a `node_axis` that the tensor does not have, a `node_of` that names no matrix of the job, or
            one with another number of units than the vector has entries.
    """
    owners = _owners(specs)
    planner = _Planner()
    if partition == "network":
        planner.network(specs)
    elif partition == "tensor":
        planner.whole_tensors(specs)
    elif partition == "weight":
        planner.weights(specs)
    elif partition == "node":
        planner.units(specs, owners, None)
    elif partition == "quasi_node":
        if quasi_node_inputs is None or quasi_node_inputs < 1:
            raise ArgumentValueError(
                f"partition 'quasi_node' needs quasi_node_inputs of at least 1, not {quasi_node_inputs}",
                field="quasi_node_inputs",
            )
        planner.units(specs, owners, quasi_node_inputs)
    else:
        raise ArgumentValueError(f"unknown partition {partition!r}", field="partition")
    return planner.plan(sum(spec.elements for spec in specs.values()))


class _Matrix(NamedTuple):
    """A matrix of a snapshot: element (unit, outer, inner) is ``offset + unit*unit_stride + outer*stride + inner``.

    A unit's row is cut between outer indices only.
    """

    label: str
    offset: int
    units: int
    unit_stride: int
    outer: int
    outer_stride: int
    inner: int

    def rows(self, outer_first: int, chunks: int, outer_count: int) -> StridedView:
        """`chunks` neighbouring stretches of every unit's row, of `outer_count` outer indices each."""
        step = self.outer_stride
        block_shape: tuple[int, ...] = (self.units,)
        block_strides: tuple[int, ...] = (self.unit_stride,)
        if chunks > 1:
            block_shape, block_strides = (self.units, chunks), (self.unit_stride, outer_count * step)
        element_shape: tuple[int, ...] = (outer_count, self.inner)
        element_strides: tuple[int, ...] = (step, 1)
        if self.inner == 1:
            element_shape, element_strides = (outer_count,), (step,)
        return StridedView(
            self.offset + outer_first * step, block_shape, block_strides, element_shape, element_strides
        )


class _Planner:
    """Collects groups and names; numbers blocks in the order in which they are added."""

    def __init__(self) -> None:
        self._groups: list[BlockGroup] = []
        self._short: dict[int, tuple[list[int], list[int]]] = {}
        self._stretches: list[Stretch] = []
        self._firsts: list[int] = []
        self._block_count = 0

    def plan(self, elements: int) -> BlockPlan:
        """All that was added."""
        shared = [_shared_group(size, *found) for size, found in self._short.items()]
        return BlockPlan(
            (*self._groups, *shared), self._block_count, elements, tuple(self._stretches), tuple(self._firsts)
        )

    def network(self, specs: Mapping[str, TensorSpec]) -> None:
        """One block of everything."""
        self._whole("network", 0, sum(spec.elements for spec in specs.values()))

    def whole_tensors(self, specs: Mapping[str, TensorSpec]) -> None:
        """One block a tensor; short ones of equal size share a group."""
        for (name, spec), offset in zip(specs.items(), _offsets(specs), strict=True):
            self._whole(name, offset, spec.elements)

    def weights(self, specs: Mapping[str, TensorSpec]) -> None:
        """One block an element, all in one group."""
        for name, spec in specs.items():
            self._number(spec.elements, Stretch(1, name, "numbered"))
        count = self._block_count
        self._groups.append(BlockGroup(count, 1, (_entries(0, count),), range(count)))

    def units(self, specs: Mapping[str, TensorSpec], owners: Mapping[str, str], inputs: int | None) -> None:
        """One block a unit, or, with `inputs`, one a chunk of so many inputs; other tensors whole."""
        offsets = dict(zip(specs, _offsets(specs), strict=True))
        vectors: dict[str, list[int]] = {}
        for vector, owner in owners.items():
            vectors.setdefault(owner, []).append(offsets[vector])
        for name, spec in specs.items():
            if name in owners:
                continue
            if len(spec.shape) < 2:
                self._whole(name, offsets[name], spec.elements)
                continue
            matrix = _matrix(_label(name, specs), spec, offsets[name])
            entries = [_entries(offset, matrix.units) for offset in vectors.get(name, [])]
            if inputs is None:
                self._nodes(matrix, entries)
            else:
                self._quasi_nodes(matrix, entries, inputs)

    def _nodes(self, matrix: _Matrix, entries: Sequence[StridedView]) -> None:
        size = matrix.outer * matrix.inner + len(entries)
        parts = (matrix.rows(0, 1, matrix.outer), *entries)
        self._add(matrix.units, parts, Stretch(size, matrix.label, "numbered"))

    def _quasi_nodes(self, matrix: _Matrix, entries: Sequence[StridedView], inputs: int) -> None:
        outer_count = max(1, inputs // matrix.inner)
        alike = matrix.outer // outer_count
        if entries and matrix.outer % outer_count == 0:
            alike -= 1  # the last chunk has the entries besides its elements
        left = matrix.outer - alike * outer_count
        if alike:
            length = outer_count * matrix.inner
            stretch = Stretch(length, matrix.label, "chunk", alike, 0, length)
            self._add(matrix.units * alike, (matrix.rows(0, alike, outer_count),), stretch)
        if left:
            start, length = alike * outer_count * matrix.inner, left * matrix.inner
            parts = (matrix.rows(alike * outer_count, 1, left), *entries)
            stretch = Stretch(length + len(entries), matrix.label, "chunk", 1, start, length)
            self._add(matrix.units, parts, stretch)

    def _whole(self, name: str, offset: int, elements: int) -> None:
        first = self._number(1, Stretch(elements, name, "whole"))
        if elements <= _SHORT:
            starts, numbers = self._short.setdefault(elements, ([], []))
            starts.append(offset)
            numbers.append(first)
        else:
            self._groups.append(_shared_group(elements, [offset], [first]))

    def _add(self, count: int, parts: tuple[StridedView, ...], stretch: Stretch) -> None:
        first = self._number(count, stretch)
        self._groups.append(BlockGroup(count, stretch.size, parts, range(first, first + count)))

    def _number(self, count: int, stretch: Stretch) -> int:
        """Give the next numbers to `count` blocks; the first of them."""
        first = self._block_count
        self._stretches.append(stretch)
        self._firsts.append(first)
        self._block_count += count
        return first


def _owners(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Vector to the matrix that it belongs to."""
    owners: dict[str, str] = {}
    for name, spec in specs.items():
        if spec.node_axis is not None and not 0 <= spec.node_axis < len(spec.shape):
            raise ArgumentValueError(
                f"tensor {name!r} of shape {spec.shape} has no axis {spec.node_axis} (node_axis)", field=name
            )
        if spec.node_of:
            _check_owner(name, spec, specs)
            owners[name] = spec.node_of
    for name, spec in specs.items():
        if len(spec.shape) < 2 or spec.node_of or "weight" not in name:
            continue
        vector = "bias".join(name.rsplit("weight", 1))
        found = specs.get(vector)
        if found is not None and vector not in owners and found.shape == (_units(spec),):
            owners[vector] = name
    # In the order of the tensors, so that a block's entries follow one another as in the snapshot.
    return {name: owners[name] for name in specs if name in owners}


def _check_owner(name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> None:
    owner = specs.get(spec.node_of)
    if owner is None or len(owner.shape) < 2 or owner.node_of:
        raise ArgumentValueError(
            f"tensor {name!r}: node_of names {spec.node_of[:80]!r}, which is no matrix of this job",
            field=name,
        )
    if spec.elements != _units(owner):
        raise ArgumentValueError(
            f"tensor {name!r} has {spec.elements} entries; {spec.node_of[:80]!r}, which node_of names, has "
            f"{_units(owner)} units",
            field=name,
        )


def _units(spec: TensorSpec) -> int:
    return spec.shape[spec.node_axis or 0]


def _matrix(label: str, spec: TensorSpec, offset: int) -> _Matrix:
    axis = spec.node_axis or 0
    units, inner = spec.shape[axis], math.prod(spec.shape[axis + 1 :])
    if axis == 0:
        return _Matrix(label, offset, units, inner, outer=inner, outer_stride=1, inner=1)
    return _Matrix(label, offset, units, inner, math.prod(spec.shape[:axis]), units * inner, inner)


def _label(name: str, specs: Mapping[str, TensorSpec]) -> str:
    """The name of a module rather than of its weight, where that is not taken."""
    stem = name.removesuffix(".weight")
    return name if not stem or stem in specs else stem


def _offsets(specs: Mapping[str, TensorSpec]) -> list[int]:
    offsets, offset = [], 0
    for spec in specs.values():
        offsets.append(offset)
        offset += spec.elements
    return offsets


def _entries(offset: int, count: int) -> StridedView:
    """One element a block, side by side."""
    return StridedView(offset, (count,), (1,), (1,), (1,))


def _shared_group(size: int, starts: Sequence[int], numbers: Sequence[int]) -> BlockGroup:
    """Blocks of `size` neighbouring elements."""
    even = _evenly(starts, size)
    part: StridedView | IndexedView = IndexedView(tuple(starts), size)
    if even is not None:
        part = StridedView(even.start, (len(starts),), (even.step,), (size,), (1,))
    return BlockGroup(len(starts), size, (part,), _evenly(numbers, 1) or tuple(numbers))


def _evenly(rising: Sequence[int], step_of_one: int) -> range | None:
    """The rising values as a range; None where they are not evenly spaced."""
    step = rising[1] - rising[0] if len(rising) > 1 else step_of_one
    even = range(rising[0], rising[-1] + 1, step)
    return even if len(even) == len(rising) and list(even) == list(rising) else None
