"""Gram matrices of blocks so long that the machine's memory is the limit.

torch has no product of float32 vectors that is fast and careful at once: `dot` and `mv` are one running sum a lane,
and a sum of products writes them all to memory first. NumPy's `einsum` reads each number once and may be told to stop
and begin anew after every few products. It works on one thread, so several work beside each other, each on a box of
its own: without the barrier after every box at which torch's threads wait for the slowest.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from koopcast.blocks import BlockGroup, StridedView
from koopcast.window.boxes import Box, boxes_of
from koopcast.window.gram import GroupGram, Incoming, is_long

__all__ = ["gram_of"]

Array = npt.NDArray[Any]

_RUN: Final = 128
"""Products that are added up in float32 before their sum goes to float64."""
_SHORTEST_BOX: Final = 1 << 17
_LONGEST_BOX: Final = 1 << 19
_BOXES_A_THREAD: Final = 4
"""So that a thread that was held up leaves work to the others."""


def gram_of(
    group: BlockGroup,
    rows: int,
    snapshot_dtype: torch.dtype,
    window_dtype: torch.dtype,
    *,
    with_state: bool,
    device: torch.device,
) -> GroupGram:
    """The fastest one for a group. The arguments are `Window`'s, with `rows` velocities in a full one."""
    narrow = snapshot_dtype == window_dtype == torch.float32 and device.type == "cpu"
    if narrow and not with_state and is_long(group) and _is_one_stretch(group):
        return LongGram(group, rows)
    return GroupGram(group, rows, dtype=window_dtype, with_state=with_state, device=device)


class LongGram(GroupGram):
    """The Gram matrix of one long block of neighbouring float32 numbers on the CPU."""

    def __init__(self, group: BlockGroup, rows: int) -> None:
        """Allocate `bytes_needed`.

        Args:
            group: one block, one strided part, nothing between its elements.
            rows: M, velocities in a full window.
        """
        super().__init__(group, rows, dtype=torch.float32, with_state=False, device=torch.device("cpu"))
        self._short_boxes = self.boxes
        share = group.size // (_BOXES_A_THREAD * torch.get_num_threads())
        self.boxes = list(boxes_of(group, max(_SHORTEST_BOX, min(share, _LONGEST_BOX))))

    def take(self, new: Incoming, store: Callable[[Box], None]) -> None:
        """See `GroupGram.take`. Differences that are too large are stored by `store`, others here."""
        threads = min(torch.get_num_threads(), len(self.boxes))
        if threads > 1:
            with ThreadPoolExecutor(threads, thread_name_prefix="window") as pool:
                found = list(pool.map(partial(_sums, new), self.boxes))
        else:
            found = [_sums(new, box) for box in self.boxes]
        held, sums = len(new.velocities), torch.from_numpy(np.sum(found, axis=0))
        self.velocity_rows[0, new.slot, :held] = sums[:held]
        self.weights_squared[new.face, 0] = sums[held]
        if not self._in_range(new):
            self._fill(new, store, self._short_boxes, rough=False)


def _is_one_stretch(group: BlockGroup) -> bool:
    part, *others = group.parts
    return group.count == 1 and isinstance(part, StridedView) and part.element_strides == (1,) and not others


def _sums(new: Incoming, box: Box) -> Array:
    """Store a box's velocity; (held + 1) its products with the stored ones, and the weights' with themselves."""
    weights, stored = (
        box.of(new.weights).view(-1).numpy(),
        box.of(new.velocities).view(-1, box.elements).numpy(),
    )
    sums = np.empty(len(stored) + 1)
    with np.errstate(all="ignore"):  # what overflows is found out, and done again
        if len(stored):
            velocity = stored[new.slot]
            np.subtract(weights, box.of(new.before).view(-1).numpy(), out=velocity)
            sums[:-1] = _products(stored, velocity)
        sums[-1:] = _products(weights[None], weights)
    return sums


def _products(rows: Array, factor: Array) -> Array:
    """(k, e), (e) -> (k) float64."""
    even = len(factor) // _RUN * _RUN
    runs = np.einsum(
        "kre,re->kr", rows[:, :even].reshape(len(rows), -1, _RUN), factor[:even].reshape(-1, _RUN)
    )
    sums: Array = runs.sum(axis=1, dtype=np.float64)
    sums += np.einsum("ke,e->k", rows[:, even:], factor[even:])
    return sums
