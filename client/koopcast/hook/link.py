"""The background thread between a trainer and the service: pushes, asks, reports, and gets a lost service back.

The training thread only ever puts something into a bounded queue, or waits on a `Question` for as long as it chooses.
While the service is lost nothing is queued (the circuit is open), and this thread alone tries to get it back.

What goes wrong is told through logging, not `warnings`: where warnings are errors, a warning would raise, and on this
thread nobody could place it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from koopcast.client import Client
from koopcast.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KoopcastError,
    ResourceExhausted,
)
from koopcast.hook.buffers import BufferPool
from koopcast.hook.displacements import Fetch
from koopcast.hook.held_job import HeldJob, Outcome, Snapshot
from koopcast.hook.question import Question
from koopcast.hook.resuming import Resumption
from koopcast.hook.stats import Counters

__all__ = ["Link"]

_LOG = logging.getLogger("koopcast")

_REFUSALS: Final = (
    InvalidArgument,
    AlreadyExists,
    FailedPrecondition,
    ResourceExhausted,
    DataLoss,
    InternalError,
)
"""Errors that say: the service is there, and did not like this call."""
_REFUSALS_IN_A_ROW: Final = 3
"""So many refused snapshots open the circuit."""
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 2.0

Item = Snapshot | Question | Fetch | Outcome


class Link:
    """Holds a job open on a background thread.

    The queue is bounded by what can be put into it: as many snapshots as there are buffers, one question, one fetch at
    a time and one outcome an attempt; and an attempt waits for its question and its fetches.
    """

    def __init__(self, client: Client, job: HeldJob, pool: BufferPool, counters: Counters) -> None:
        """Hold this job of `client`, which is closed with it. Use `start` to begin."""
        self._client = client
        self._job = job
        self._pool = pool
        self._counters = counters
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._up = False
        self._busy = False
        self._stopping = False
        self._keep = False
        self._tried = threading.Event()
        self._resumption: Resumption | None = None
        self._error: BaseException | None = None
        self._warned = False
        self._refusals = 0
        self._failures = 0
        self._process_id = os.getpid()
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

    def resume(self, resumption: Resumption, wait_seconds: float) -> bool:
        """Hold the job of an earlier process; whether its window goes on. Waits for that at most so long."""
        with self._changed:
            self._resumption = resumption
            self._changed.notify_all()
        return bool(resumption.wait(wait_seconds))

    def drain(self, wait_seconds: float) -> None:
        """Wait at most so long until everything that was put in has been dealt with."""
        with self._changed:
            self._changed.wait_for(lambda: not self._items and not self._busy, wait_seconds)

    def where(self) -> Mapping[str, Any]:
        """What a later process needs to go on with the window."""
        return self._job.where()

    def take_error(self) -> BaseException | None:
        """The last error that was not taken yet."""
        error, self._error = self._error, None
        return error

    def stop(self, *, keep: bool = False) -> None:
        """End: outcomes still queued are sent, snapshots are dropped; the job is closed, or kept for the next writer.

        Does nothing in a forked child, where the thread is not.
        """
        if os.getpid() != self._process_id:
            return
        with self._changed:
            self._stopping, self._keep = True, keep
            self._changed.notify_all()
        elsewhere = self._thread is not threading.current_thread()
        if elsewhere:
            self._thread.join(_STOP_SECONDS)
        self._client.close()
        if elsewhere:
            # What it was waiting for has been cancelled: it counts what it drops.
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping:
            if self._resumption is not None:
                self._guarded(self._resume)
            else:
                self._guarded(self._serve_next if self._up else self._recover)
        self._guarded(self._leave)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # the border: a fault in here must not end the thread unseen
            self._lose(error)
            self._pause()

    def _serve_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._called)
            if self._called:
                return
            item = self._items.popleft()
            self._busy = True
        try:
            self._serve(item)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _serve(self, item: Item) -> None:
        if isinstance(item, Snapshot):
            self._push(item)
        elif isinstance(item, Question | Fetch):
            self._answer(item)
        else:
            self._report(item)

    def _push(self, snapshot: Snapshot) -> None:
        try:
            self._job.push(snapshot)
            self._refusals = 0
        except _REFUSALS as error:
            self._counters.dropped()
            self._refusals += 1
            if self._refusals < _REFUSALS_IN_A_ROW:
                self._note(error)
            else:
                self._lose(error)
                self._pause()
        except KoopcastError as error:
            self._counters.dropped()
            self._lose(error)
        finally:
            self._pool.give(snapshot.buffer)

    def _answer(self, asked: Question | Fetch) -> None:
        try:
            if isinstance(asked, Question):
                self._job.answer(asked)
            else:
                self._job.fetch(asked)
        except DeadlineExceeded:
            asked.decline("no answer in time")
        except _REFUSALS as error:
            asked.decline(str(error))
            self._note(error)
        except KoopcastError as error:
            _give_up(asked, str(error))
            self._lose(error)

    def _report(self, outcome: Outcome) -> None:
        try:
            self._job.report(outcome)
        except _REFUSALS as error:
            self._note(error)
        except KoopcastError as error:
            self._lose(error)

    def _recover(self) -> None:
        """One attempt to hold the job again; after a failed one, a pause."""
        try:
            self._job.open()
        except KoopcastError as error:
            self._note(error)
            self._tried.set()
            self._pause()
            return
        self._hold()

    def _resume(self) -> None:
        """One attempt to hold an earlier process's job; if it fails, the job is opened as any other."""
        resumption, self._resumption = self._resumption, None
        if resumption is None:
            return
        try:
            resumption.answer(self._job.resume(resumption))
        except KoopcastError as error:
            resumption.decline(str(error))
            self._lose(error)
            return
        self._error = None
        self._hold()

    def _hold(self) -> None:
        self._failures = 0
        self._counters.connected = True
        with self._changed:
            self._up = True
        self._tried.set()
        if self._warned:
            _LOG.info("koopcast: connected again")

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

    def _note(self, error: BaseException) -> None:
        """Count an error; the first one is a warning, and the only one."""
        if self._stopping:
            return
        self._error = error
        self._counters.service_errors += 1
        if not self._warned:
            self._warned = True
            _LOG.warning("koopcast: %s. Training goes on, without jumps for as long as this lasts", error)
        else:
            _LOG.debug("koopcast: %s", error)

    def _drop(self, item: Item) -> None:
        if isinstance(item, Snapshot):
            self._counters.dropped()
            self._pool.give(item.buffer)
        elif isinstance(item, Question | Fetch):
            _give_up(item, "the service was lost")

    def _pause(self) -> None:
        seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        with self._changed:
            self._changed.wait_for(lambda: self._called, seconds)

    @property
    def _called(self) -> bool:
        """Whether something else is to be done than what is queued."""
        return self._stopping or self._resumption is not None

    def _leave(self) -> None:
        with self._changed:
            up, self._up = self._up, False
            items, self._items = self._items, deque()
        self._counters.connected = False
        for item in items:
            if isinstance(item, Outcome) and up:
                self._report(item)
            else:
                self._drop(item)
        if up:
            self._job.close(keep=self._keep)


def _give_up(asked: Question | Fetch, reason: str) -> None:
    """No answer, and the window is lost."""
    if isinstance(asked, Question):
        asked.lack(reason, 0)
    else:
        asked.decline(reason)
