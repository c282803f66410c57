"""Combinations of snapshots: what an operator's coefficients make of a window, box by box."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from koopcast.window.boxes import Box, StridedBox
from koopcast.window.slots import Slots

__all__ = ["combine_boxes"]

_RUN: Final = 32
"""Rows of so many neighbouring elements are combined as batched matrix products; shorter ones lose by it."""


def combine_boxes(
    boxes: Iterable[Box],
    slots: Slots,
    velocity_coefficients: Tensor,
    last_coefficients: Tensor | None,
    out: Tensor,
) -> None:
    """Write ``out[block] = sum_j c_j v_j + c_last w_last`` for the blocks of a group.

    Accumulates in float32, or in float64 where velocities or snapshots are float64. Boxes whose coefficients are
    all zero give zeros and are not read.

    Args:
        boxes: the group, cut.
        slots: the snapshots.
        velocity_coefficients: (B, M), velocities oldest first.
        last_coefficients: (B,), or None for zeros.
        out: (n,) on the device of the snapshots, of any floating dtype. Elements of other groups stay.
    """
    order = slots.order()
    used = max(order, default=-1) + 1
    described: tuple[object, ...] = ()
    own, moves, last = torch.empty(0), False, None
    for box in boxes:
        if (box.counts, box.blocks) != described:  # the boxes of a long block have the same one
            described = (box.counts, box.blocks)
            # By slot, zero where none is held; those of the last snapshot come last.
            picked = box.by_block(velocity_coefficients)
            own = torch.zeros((*picked.shape[:-1], used + 1), dtype=slots.working)
            own[..., order] = picked.to("cpu", slots.working)
            if last_coefficients is not None:
                own[..., -1] = box.by_block(last_coefficients[:, None])[..., 0].to("cpu", slots.working)
            moves, last = bool(own.any()), slots.last if own[..., -1].any() else None
            own = own.to(out.device)
        if moves:
            _combine_box(box, slots.velocities[:used], last, own, out)
        else:
            box.write(out, torch.zeros((), dtype=out.dtype, device=out.device).expand(box.shape))


def _combine_box(
    box: Box, velocities: Tensor, last: Tensor | None, coefficients: Tensor, out: Tensor
) -> None:
    dtype = coefficients.dtype
    factors = box.spread(coefficients)
    stored = box.of(velocities).to(dtype)
    target = _in_place(box, out, dtype)
    if box.is_one_block:  # here the memory is the limit
        result = torch.mv(stored.flatten(1).t(), factors[:-1].flatten(), out=target).view(box.shape)
    elif box.block_axes == (0,) and box.element_axes == (1,) and box.shape[1] >= _RUN:
        result = torch.bmm(factors[:-1].permute(1, 2, 0), stored.transpose(0, 1)).squeeze(1)
    else:
        result = (stored * factors[:-1]).sum(dim=0)
    if last is not None:
        result.addcmul_(box.of(last).to(dtype), factors[-1])
    if target is None or result.data_ptr() != target.data_ptr():
        box.write(out, result)


def _in_place(box: Box, out: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The box's elements in `out` as a flat array; None where they lie apart, or are of another dtype."""
    if out.dtype != dtype or not isinstance(box, StridedBox):
        return None
    target = box.of(out)
    return target.view(-1) if target.is_contiguous() else None
