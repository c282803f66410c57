"""The trainer's own ring of snapshots, and the job at the service that gets rows of it and gives coefficients for it.

::

    parameters ──fill──> the ring's spare slot ──publish──> Gram row ──> service      (background thread)
    model <──translate── displacement <──combine── coefficients <─────── service      (training thread)

The slot is the only buffer, so a snapshot is copied once. It is taken while a row is made, or while an attempt borrows its
memory; a snapshot that is due then waits for it as long as the attempt may, and is dropped after that.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from koopcast.client import Client
from koopcast.errors import Cancelled, DeadlineExceeded, FailedPrecondition, Unavailable
from koopcast.gram import GramRow
from koopcast.hook.budget import WaitBudget
from koopcast.hook.buffers import BufferPool, SnapshotBuffer
from koopcast.hook.held_job import HeldJob, JobSettings, Snapshot
from koopcast.hook.question import Question
from koopcast.hook.resuming import Resumption
from koopcast.hook.sharding import local
from koopcast.hook.stats import Counters
from koopcast.job import Job
from koopcast.prediction import Prediction
from koopcast.upload import PushResult
from koopcast.window.held import TrainerWindow

__all__ = ["CombinedDisplacements", "Ring", "RingPool", "RowsJob", "Shards"]

_TOO_FEW: Final = "TOO_FEW_SNAPSHOTS"
"""Reason of the service's refusal while rows of other shards are on their way."""
_ASK_AGAIN_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Shards:
    """Which part of the window this process holds.

    Attributes:
        index: from 0.
        count: processes that hold a part.
    """

    index: int = 0
    count: int = 1


class Ring:
    """The window, for the two threads that use it one after the other.

    Attributes:
        window: the window.
        lock: to be held for as long as it is used.
    """

    def __init__(self, window: TrainerWindow) -> None:
        """Share it."""
        self.window = window
        self.lock = threading.Lock()
        on_gpu = window.device.type == "cuda"
        self._stream = torch.cuda.Stream(window.device) if on_gpu else None  # type: ignore[no-untyped-call]

    def publish(self, step: int, *, first: bool) -> GramRow:
        """Take the snapshot in the spare slot, as the first one of a segment or as the next; its row."""
        with (
            self.lock,
            torch.cuda.stream(self._stream),
        ):  # beside the trainer's work; on the CPU it means nothing
            if first:
                self.window.clear()
            return self.window.publish(step)


class RingPool(BufferPool):
    """The ring's spare slot as a pool of one buffer."""

    def __init__(self, ring: Ring) -> None:
        """Give out the slot of this ring."""
        self._ring = ring
        self.snapshot_bytes = ring.window.spare.nbytes
        self._free: queue.Queue[SnapshotBuffer] = queue.Queue()
        self._free.put(_Slot(ring))
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pending: list[torch.cuda.Event] = []

    def fill(self, buffer: SnapshotBuffer, sources: Mapping[str, Tensor]) -> None:
        """Copy into the slot what of `sources` is held here."""
        held = {name: local(source) for name, source in sources.items()}
        super().fill(buffer, held)


class _Slot(SnapshotBuffer):
    """Where the coming snapshot is written: another memory after each one that was published."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._copied: list[torch.cuda.Event] = []
        self._sources: list[Tensor] = []

    @property
    def tensors(self) -> dict[str, Tensor]:  # type: ignore[override]  # read only, as elsewhere
        """Name to its part of the slot; those of which there is any."""
        window = self._ring.window
        return {name: part for name, part in window.split(window.spare).items() if part.numel()}

    @property
    def memory(self) -> Tensor | None:
        """All bytes of the slot, to lend; None where they are pinned, or not on the CPU."""
        spare = self._ring.window.spare
        lendable = spare.device.type == "cpu" and spare.numel() and not spare.is_pinned()
        return spare.view(torch.uint8) if lendable else None


class CombinedDisplacements:
    """Made of coefficients, in the ring, when a trial wants one."""

    def __init__(self, ring: Ring, budget: WaitBudget) -> None:
        """Combine here; the ring is awaited for as long as the attempt may wait."""
        self.failure = ""
        self._ring = ring
        self._budget = budget

    def of(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        """The displacement of the parts held here; None where the ring has moved on, or the numbers are not finite."""
        started = time.monotonic()
        held = self._ring.lock.acquire(timeout=self._budget.left)
        self._budget.spend_since(started)
        if not held:
            self.failure = "the ring was busy"
            return None
        try:
            return self._combined(prediction)
        finally:
            self._ring.lock.release()

    def _combined(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        window = self._ring.window
        if prediction.coefficients is None:
            self.failure = "the answer has no coefficients"
            return None
        try:
            flat = window.combine(prediction.coefficients)
        except FailedPrecondition as moved:
            self.failure = str(moved)
            return None
        if flat.numel() and not bool(torch.isfinite(flat.min()) & torch.isfinite(flat.max())):
            self.failure = "the displacement is not finite"
            return None
        return window.split(flat)


class RowsJob(HeldJob):
    """Calls on a job whose snapshots stay here."""

    def __init__(
        self, client: Client, settings: JobSettings, ring: Ring, shards: Shards, counters: Counters
    ) -> None:
        """Not opened yet."""
        super().__init__(client, settings, counters)
        self._ring = ring
        self._shards = shards
        self._ring_segment = 0  # 0: whatever the ring holds, it is of no segment of this job

    def open(self) -> None:
        """Hold the job; begins a segment."""
        super().open()
        self._ring_segment = 0

    def resume(self, resumption: Resumption) -> bool:
        """Hold the job of an earlier process of this run. Its window ended with that process."""
        self._lease_id = resumption.lease_id
        if self._job is None:
            self.open()
        return False

    def _holding(self) -> dict[str, Any]:
        return {
            "window_holder": "trainer",
            "shard_count": self._shards.count,
            "shard_index": self._shards.index,
        }

    def _send(self, job: Job, snapshot: Snapshot) -> PushResult:
        first = self._ring_segment != job.segment
        self._ring_segment = job.segment
        row = self._ring.publish(snapshot.step, first=first)
        try:
            return self._push_row(job, snapshot, row)
        except (
            Unavailable,
            Cancelled,
        ):  # the ring has moved on: once more, rather than to begin a new window
            return self._push_row(job, snapshot, row)

    def _push_row(self, job: Job, snapshot: Snapshot, row: GramRow) -> PushResult:
        return job.push_gram_row(snapshot.step, row, averaging=self._settings.averaging, clock=snapshot.clock)

    def _held(self, job: Job) -> int:
        """Snapshots in the ring. Of those at the service, an answer tells."""
        return self._ring.window.snapshots_held if self._ring_segment == job.segment else 0

    def _ask(
        self,
        job: Job,
        question: Question,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
    ) -> list[Prediction]:
        """Ask; again and again while other shards have not sent their rows of the snapshot that it is asked at."""
        while True:
            try:
                predictions = job.predict_coefficients(
                    question.horizons,
                    from_step=question.from_step,
                    operators=question.operators,
                    clock_intervals=clock_intervals,
                    from_clock=from_clock,
                    timeout_seconds=max(0.001, question.seconds_left()),
                )
            except FailedPrecondition as refusal:
                if self._shards.count == 1 or refusal.reason != _TOO_FEW:
                    raise
            else:
                if self._shards.count == 1 or _is_of(predictions, question.base_step):
                    return predictions
            if question.seconds_left() < _ASK_AGAIN_SECONDS:
                raise DeadlineExceeded("the rows of other ranks did not come in time", reason="SHARD_BEHIND")
            time.sleep(_ASK_AGAIN_SECONDS)

    def _with_displacement(self, prediction: Prediction) -> Prediction:
        return prediction  # the ring makes it, when it is looked at


def _is_of(predictions: list[Prediction], step: int) -> bool:
    return all(prediction.base_step == step for prediction in predictions)
