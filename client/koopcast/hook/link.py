"""The background thread between a trainer and the service: pushes, asks, reports, and re-opens a lost job.

The training thread only ever puts something into a bounded queue, or waits on a `Question` for as long as it chooses.
While the service is lost nothing is queued (the circuit is open), and this thread alone tries to get it back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from koopcast.client import Client
from koopcast.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KoopcastError,
    LeaseLost,
    NotFound,
    ResourceExhausted,
)
from koopcast.hook.question import Question, check_answer
from koopcast.hook.selection import BufferPool, SnapshotBuffer
from koopcast.hook.stats import Counters
from koopcast.job import Job
from koopcast.operator import Operator
from koopcast.wire import TensorSpec

__all__ = ["JobSettings", "Link", "Outcome", "Snapshot"]

_LOG = logging.getLogger("koopcast")

_REFUSALS: Final = (InvalidArgument, AlreadyExists, FailedPrecondition, ResourceExhausted, DataLoss)
"""Errors of a push that say the service is well and did not like the snapshot."""
_REFUSALS_IN_A_ROW: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0
_LEAVE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The job to hold open.

    Attributes:
        name: its name.
        unique: whether the name was made up here, so that nobody else can hold its lease.
        tensors: name to spec.
        stride: trainer steps between snapshots.
        operator: its operator settings.
        averaging: every snapshot is the mean of so many steps.
    """

    name: str
    unique: bool
    tensors: Mapping[str, TensorSpec]
    stride: int
    operator: Operator
    averaging: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot to push; `fresh`: it begins a segment."""

    step: int
    buffer: SnapshotBuffer
    clock: float | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prediction, to report."""

    prediction_id: str
    accepted: bool
    loss_before: float | None
    loss_after: float | None


Item = Snapshot | Question | Outcome


class Link:
    """Holds a job open on a background thread."""

    def __init__(self, client: Client, settings: JobSettings, pool: BufferPool, counters: Counters) -> None:
        """Use `start` to begin."""
        self._client = client
        self._settings = settings
        self._pool = pool
        self._counters = counters
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._up = False
        self._stopping = False
        self._keep = False
        self._tried = threading.Event()
        self._warned = False
        self._job: Job | None = None
        self._fresh = False
        self._last_step = -1
        self._refusals = 0
        self._failures = 0
        self._bytes_before = (0, 0)
        self._thread = threading.Thread(target=self._run, name="koopcast-hook", daemon=True)

    @property
    def up(self) -> bool:
        """Whether the job is open, as far as is known."""
        return self._up

    def start(self, wait_seconds: float) -> None:
        """Begin; returns when the first attempt to open the job has ended, or after `wait_seconds`."""
        self._thread.start()
        self._tried.wait(wait_seconds)

    def put(self, item: Item) -> bool:
        """Hand something to the background thread; False, and nothing happens, while the service is lost."""
        with self._changed:
            if not self._up or self._stopping:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def stop(self, *, keep: bool, timeout_seconds: float) -> None:
        """End: what is queued is dropped (outcomes are sent), the job is closed, or kept for the next writer."""
        with self._changed:
            self._stopping, self._keep = True, keep
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)
        self._client.close()

    def _run(self) -> None:
        while not self._stopping:
            try:
                if self._up:
                    self._serve_next()
                elif not self._recover():
                    self._pause()
            except Exception as error:  # noqa: BLE001  # the border: a fault in here must not end the thread silently
                self._lose(error)
                self._pause()
        self._leave()

    # --- while the service is there

    def _serve_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._stopping)
            if not self._items or self._stopping:
                return
            item = self._items.popleft()
        job = self._job
        assert job is not None  # held while up
        if isinstance(item, Snapshot):
            self._push(job, item)
        elif isinstance(item, Question):
            self._answer(job, item)
        else:
            self._report(job, item)
        self._count_bytes(job)

    def _push(self, job: Job, snapshot: Snapshot) -> None:
        try:
            snapshot.buffer.wait()
            if snapshot.fresh or self._fresh:
                job.start_segment()
                self._fresh = False
            result = job.push(
                snapshot.step,
                snapshot.buffer.tensors,
                averaging=self._settings.averaging,
                clock=snapshot.clock,
            )
        except _REFUSALS as error:
            self._refuse(error)
        except KoopcastError as error:
            self._counters.dropped()
            self._lose(error)
        else:
            self._refusals = 0
            self._last_step = snapshot.step
            self._counters.snapshots_pushed += 1
            if result.outcome == "superseded":
                self._fresh = True
        finally:
            self._pool.give(snapshot.buffer)

    def _refuse(self, error: KoopcastError) -> None:
        """The service did not take a snapshot: the trajectory has a gap."""
        self._counters.dropped()
        self._fresh = True
        self._refusals += 1
        if self._refusals >= _REFUSALS_IN_A_ROW:
            self._lose(error)
        else:
            self._note(error)

    def _answer(self, job: Job, question: Question) -> None:
        held = job.snapshots_held if self._last_step == question.base_step and not self._fresh else 0
        if held < self._settings.operator.window:
            question.decline(
                f"the window holds {held} of {self._settings.operator.window} snapshots", held=held
            )
            return
        seconds = question.seconds_left()
        if seconds <= 0.0:
            question.decline("no answer in time")
            return
        try:
            predictions = job.predict_ahead(
                question.horizons,
                from_step=question.from_step,
                operators=question.operators,
                timeout_seconds=seconds,
            )
            question.answer(check_answer(predictions, question, self._settings.tensors, job.segment))
        except DeadlineExceeded:
            question.decline("no answer in time")
        except (*_REFUSALS, InternalError) as error:
            question.decline(str(error))
            self._note(error)
        except KoopcastError as error:
            question.decline(str(error), held=0)
            self._lose(error)

    def _report(self, job: Job, outcome: Outcome) -> None:
        try:
            job.report(outcome.prediction_id, outcome.accepted, outcome.loss_before, outcome.loss_after)
        except _REFUSALS as error:
            self._note(error)
        except KoopcastError as error:
            self._lose(error)

    # --- when it is lost

    def _note(self, error: BaseException) -> None:
        self._counters.service_errors += 1
        if not self._warned:
            self._warned = True
            _LOG.warning("koopcast: %s; training goes on without jumps until this is mended", error)
        else:
            _LOG.debug("koopcast: %s", error)

    def _lose(self, error: BaseException) -> None:
        """Open the circuit: drop what is queued, and let nothing in."""
        with self._changed:
            self._up = False
            items, self._items = self._items, deque()
        self._counters.connected = False
        self._refusals = 0
        for item in items:
            self._drop(item)
        self._note(error)

    def _drop(self, item: Item) -> None:
        if isinstance(item, Snapshot):
            self._counters.dropped()
            self._pool.give(item.buffer)
        elif isinstance(item, Question):
            item.decline("the service was lost", held=0)

    def _pause(self) -> None:
        seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)

    def _recover(self) -> bool:
        """One attempt to hold the job again: by the lease there was, else by opening it."""
        try:
            if not self._renewed():
                self._open()
        except KoopcastError as error:
            self._note(error)
            return False
        finally:
            self._tried.set()
        _LOG.debug("koopcast: job %r is open at %s", self._settings.name, self._client.target)
        self._failures = 0
        self._counters.connected = True
        with self._changed:
            self._up = True
        return True

    def _renewed(self) -> bool:
        job = self._job
        if job is None:
            return False
        try:
            job.renew()
        except (NotFound, LeaseLost):
            self._count_bytes(job)
            self._bytes_before = (self._counters.bytes_sent, self._counters.bytes_received)
            self._job = None
            return False
        self._fresh = True
        return True

    def _open(self) -> None:
        settings = self._settings
        self._job = self._client.open_job(
            settings.name,
            settings.tensors,
            stride=settings.stride,
            operator=settings.operator,
            take_over=settings.unique,
        )
        self._fresh = False
        self._last_step = -1

    def _count_bytes(self, job: Job) -> None:
        sent, received = self._bytes_before
        self._counters.bytes_sent = sent + job.bytes_sent
        self._counters.bytes_received = received + job.bytes_received

    def _leave(self) -> None:
        up, job = self._up, self._job
        with self._changed:
            self._up = False
            items, self._items = self._items, deque()
        for item in items:
            if isinstance(item, Outcome) and up and job is not None:
                self._report(job, item)
            else:
                self._drop(item)
        self._counters.connected = False
        if job is not None and up:
            with contextlib.suppress(KoopcastError):  # the lease expires by itself
                job.close(keep=self._keep, timeout_seconds=_LEAVE_SECONDS)
