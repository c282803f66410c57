"""The window inside a trainer: snapshots stay in its memory, Gram rows go to the service, coefficients come back.

::

    parameters ──write──> spare ── publish ──> Gram row ── Job.push_gram_row ──────> service
                                                                                       │
    displacement <── combine <── coefficients <── Job.predict_coefficients <───────────┘

The same `koopcast.window.ring.Window` as at the service, with the Gram matrices of all blocks, short ones too: an inner
product is all that may leave. A trainer that is spread over several processes has a window in each, of the part of each
tensor that lives there. The service sums their rows, and each process applies the same coefficients to its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from koopcast.errors import ArgumentValueError, FailedPrecondition
from koopcast.gram import Coefficients, GramRow
from koopcast.operator import Operator
from koopcast.prediction import Prediction
from koopcast.window.mask import mask_by_last_change_
from koopcast.window.ring import Window
from koopcast.window.shards import Shard, plan_shard
from koopcast.wire import TensorSpec, storage_dtype

__all__ = ["Shard", "TrainerWindow"]

_DTYPES: Final = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class TrainerWindow:
    """A job's window, or this process's part of it, in the trainer's memory. Not thread-safe.

    Attributes:
        size: elements held here of a snapshot; 0 where no tensor has a part here.
        length: weight snapshots held when full.
        block_count: blocks of the job, of all parts.
        device: where the window lives.
        dtype: of snapshots and displacements: float64 where a tensor of the job is, float32 otherwise.
        step: of the newest snapshot; meaningless while none is held.
        version: another number after each `publish` and `clear`.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        operator: Operator,
        *,
        shard: Shard | None = None,
        device: torch.device | str = "cpu",
        window_dtype: str | None = None,
        pinned: bool = False,
    ) -> None:
        """Allocate `bytes_needed` bytes on `device`.

        Args:
            specs: name to spec of the job's tensors, whole, in order.
            operator: the job's operator.
            shard: this process's part; None: the whole.
            device: where to hold it.
            window_dtype: of the stored velocities, as when the job is opened; None: that of the snapshots.
            pinned: page-lock the last and the coming snapshot, for a window on the CPU of a trainer on a GPU.

        Raises:
            ArgumentValueError: an operator that needs its blocks whole in one place, or too many blocks.
        """
        plan, self.block_count, self._numbers = plan_shard(specs, operator, shard)
        self.length = int(operator.window)
        self.device = torch.device(device)
        self.dtype = _DTYPES[storage_dtype([spec.dtype for spec in specs.values()])]
        self._with_state = operator.observable == "state"
        self._mask_tolerance = operator.mask_tolerance
        self._window: Window | None = None
        if plan is not None:
            self._window = Window(
                plan,
                self.length,
                snapshot_dtype=self.dtype,
                window_dtype=_DTYPES[window_dtype] if window_dtype else self.dtype,
                with_state=self._with_state,
                all_dual=True,
                device=self.device,
            )
            if pinned:
                self._window.pin()
        self._shapes = {
            name: shard[name] if shard is not None else spec.shape for name, spec in specs.items()
        }
        self._bounds = tuple(accumulate(map(prod, self._shapes.values()), initial=0))
        self.size = self._bounds[-1]
        self._nothing = torch.empty(0, dtype=self.dtype, device=self.device)
        self._held = 0
        self.step = 0
        self.version = 0

    @staticmethod
    def bytes_needed(
        specs: Mapping[str, TensorSpec],
        operator: Operator,
        *,
        shard: Shard | None = None,
        window_dtype: str | None = None,
    ) -> int:
        """Bytes that such a window allocates and keeps; `publish` and `combine` need < 64 MiB more.

        Raises:
            ArgumentValueError: as the constructor.
        """
        plan, _, _ = plan_shard(specs, operator, shard)
        if plan is None:
            return 0
        stored = _DTYPES[storage_dtype([spec.dtype for spec in specs.values()])]
        return Window.bytes_needed(
            plan,
            int(operator.window),
            snapshot_dtype=stored,
            window_dtype=_DTYPES[window_dtype] if window_dtype else stored,
            with_state=operator.observable == "state",
            all_dual=True,
        )

    @property
    def nbytes(self) -> int:
        """Bytes held; equals `bytes_needed`."""
        return 0 if self._window is None else self._window.nbytes

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window: 0 to `length`."""
        return self._held

    @property
    def spare(self) -> Tensor:
        """(size,) where the coming snapshot is to be written; another array after each `publish`."""
        return self._nothing if self._window is None else self._window.spare

    @property
    def last(self) -> Tensor:
        """(size,) the last published snapshot; meaningless while none is held. Not to be written."""
        return self._nothing if self._window is None else self._window.last

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat array of `size` elements, by name, in the shapes of the parts held here."""
        return {
            name: flat[start:stop].view(shape)
            for (name, shape), (start, stop) in zip(self._shapes.items(), pairwise(self._bounds), strict=True)
        }

    def write(self, tensors: Mapping[str, Tensor], *, non_blocking: bool = False) -> None:
        """Copy the parts held here into `spare`.

        Args:
            tensors: name to tensor, of the shapes of the parts, of any floating dtype, on any device.
            non_blocking: do not wait for copies from a GPU into pinned memory: the caller does, before `publish`.

        Raises:
            ArgumentValueError: a tensor is missing, or its shape is not that of the part.
        """
        targets, sources = [], []
        for name, view in self.split(self.spare).items():
            given = tensors.get(name)
            if given is None or given.shape != view.shape:
                found = "missing" if given is None else f"of shape {tuple(given.shape)}"
                raise ArgumentValueError(
                    f"tensor {name!r} is {found}; this window holds a part of shape {tuple(view.shape)}",
                    field=name,
                )
            if view.numel():
                targets.append(view)
                sources.append(given.detach())
        if targets:
            with torch.no_grad():
                torch._foreach_copy_(targets, sources, non_blocking=non_blocking)

    def clear(self) -> None:
        """Forget all snapshots: a new segment begins with the next one."""
        if self._window is not None:
            self._window.clear()
        self._held = 0
        self.version += 1

    def publish(self, step: int) -> GramRow:
        """Take what stands in `spare` as the snapshot of a step; what the service needs to know of it.

        Numbers that are not finite give a row that is not: `GramRow.checked`, which `Job.push_gram_row` calls, says so.
        The window is then of no more use before it is cleared.

        Returns:
            The row, of all blocks of the job by number: zeros for blocks that have no element here.
        """
        held = min(self._held, self.length - 1)
        row = GramRow(
            np.zeros((self.block_count, held)),
            np.zeros((self.block_count, held if self._with_state else 0)),
            np.zeros(self.block_count),
        )
        if self._window is not None:
            self._window.publish()
            found, numbers = self._window.newest_row(), np.concatenate(self._numbers)
            row.velocity[numbers] = found.velocity.numpy()
            row.weight[numbers] = found.weight.numpy()[:, : row.weight.shape[1]]
            row.squared[numbers] = found.squared.numpy()
        self._held, self.step, self.version = held + 1, step, self.version + 1
        return row

    def combine(self, coefficients: Coefficients, out: Tensor | None = None) -> Tensor:
        """The displacement that coefficients make of this window.

        Args:
            coefficients: of all blocks, from `Job.predict_coefficients`.
            out: (size,) where to write it, on `device`, of any floating dtype; None: a new array of `dtype`.

        Returns:
            (size,) the displacement of the parts held here; see `split`.

        Raises:
            FailedPrecondition: the window has moved since, or holds another number of snapshots (WINDOW_MOVED).
        """
        expected = (self.block_count, max(0, self._held - 1))
        if (coefficients.step, coefficients.velocity.shape) != (self.step, expected) or not self._held:
            raise FailedPrecondition(
                f"the coefficients are of the window at step {coefficients.step} with "
                f"{coefficients.velocity.shape[1]} velocities; this one is at step {self.step} with {expected[1]}: ask "
                "again",
                reason="WINDOW_MOVED",
                step=coefficients.step,
                newest=self.step,
            )
        if out is None:
            out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        if self._window is not None:
            velocity = torch.tensor(coefficients.velocity)
            last = None if coefficients.last is None else torch.tensor(coefficients.last)
            for group, numbers in enumerate(self._numbers):
                own = None if last is None else last[numbers]
                self._window.combine(group, velocity[numbers], own, out)
            if self._mask_tolerance is not None and self._held > 1:
                mask_by_last_change_(out, self._window, self._mask_tolerance, coefficients.strides)
        return out

    def bind(self, prediction: Prediction) -> Prediction:
        """The prediction with a `displacement` made by this window, anew whenever it is looked at, while it stays as it is.

        Raises:
            FailedPrecondition: the prediction has no coefficients.
        """
        coefficients = prediction.coefficients
        if coefficients is None and prediction.moved:
            raise FailedPrecondition(
                "the prediction brings its own displacement, not coefficients of a window",
                reason="NO_COEFFICIENTS",
            )

        def displacement() -> dict[str, Any]:
            flat = (
                torch.zeros(self.size, dtype=self.dtype)
                if coefficients is None
                else self.combine(coefficients).cpu()
            )
            return {name: view.numpy() for name, view in self.split(flat).items()}

        return replace(prediction, _displacement=displacement)
