"""The job at the service as the hook needs it: opened again when it is lost, one segment for each whole trajectory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from koopcast.client import Client
from koopcast.encoding import EncodingName
from koopcast.errors import DeadlineExceeded, FailedPrecondition, KoopcastError, LeaseLost, NotFound
from koopcast.hook.buffers import SnapshotBuffer
from koopcast.hook.displacements import Fetch, as_tensors
from koopcast.hook.question import Question, check_answer, check_displacement
from koopcast.hook.resuming import Resumption
from koopcast.hook.stats import Counters
from koopcast.job import Job
from koopcast.operator import Operator
from koopcast.prediction import Prediction
from koopcast.upload import PushResult
from koopcast.wire import TensorSpec

__all__ = ["HeldJob", "JobSettings", "Outcome", "Snapshot"]

_CLOSE_SECONDS: Final = 1.0
_UNEVEN_CLOCK: Final = "UNEVEN_CLOCK"
"""Reason of the service's refusal where snapshots cannot be resampled on their clock."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The job to hold.

    Attributes:
        name: its name.
        unique: whether the name was made up here, so that nobody else can hold its lease.
        tensors: name to spec.
        stride: trainer steps between snapshots.
        operator: its operator settings.
        averaging: every snapshot is the mean of so many steps.
        encoding: how snapshots travel, as in `Client.open_job`.
        wire_dtype: element type of answers, likewise; None: the service's default.
    """

    name: str
    unique: bool
    tensors: Mapping[str, TensorSpec]
    stride: int
    operator: Operator
    averaging: int
    encoding: EncodingName = "raw"
    wire_dtype: str | None = None


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


class HeldJob:
    """Calls on one job, on one thread. Everything raises KoopcastError as the service answers."""

    def __init__(self, client: Client, settings: JobSettings, counters: Counters) -> None:
        """Not opened yet."""
        self._client = client
        self._settings = settings
        self._counters = counters
        self._job: Job | None = None
        self._fresh = False
        self._used_segment = 0
        self._newest: tuple[int, int] | None = None  # segment and step of the newest snapshot
        self._bytes_before = (0, 0, 0)
        self._lease_id = ""  # of the process that this run began in

    def open(self) -> None:
        """Hold the job: by the lease there was where it still counts, else by opening it. Begins a segment."""
        if self._job is not None:
            try:
                self._job.renew()
            except (NotFound, LeaseLost):
                self._forget(self._job)
        if self._job is None:
            self._job = self._open_job()
            self._lease_id = ""
        self.break_off()

    def resume(self, resumption: Resumption) -> bool:
        """Hold the job of an earlier process of this run; whether its window is the one that training left.

        Where it is, the next snapshot goes on in its segment.
        """
        self._lease_id = resumption.lease_id
        if self._job is None:
            self.open()
        job = self._opened()
        if not resumption.fits(job, self._settings.stride, self._settings.averaging):
            return False
        job.segment = self._used_segment = job.held_segment
        self._newest = (job.held_segment, job.held_step)
        self._fresh = False
        return True

    def where(self) -> Mapping[str, Any]:
        """What a later process needs to go on with this window: the newest snapshot, and the lease."""
        job, newest = self._job, self._newest
        segment, step = newest if newest is not None else (0, 0)
        return {"lease_id": job.lease_id if job is not None else "", "segment": segment, "step": step}

    def break_off(self) -> None:
        """A snapshot is missing: the next one begins a segment."""
        self._fresh = True
        self._newest = None

    def push(self, snapshot: Snapshot) -> None:
        """Push a snapshot."""
        job = self._opened()
        snapshot.buffer.wait()
        if (snapshot.fresh or self._fresh) and job.segment == self._used_segment:
            job.start_segment()
        self._fresh = False
        self._used_segment = job.segment
        try:
            result = self._send(job, snapshot)
        except KoopcastError:
            self.break_off()
            raise
        finally:
            self._count_bytes(job)
        self._newest = (job.segment, snapshot.step)
        if result.outcome == "superseded":
            self._counters.dropped()
            self.break_off()
        else:
            self._counters.snapshots_pushed += 1

    def answer(self, question: Question) -> None:
        """Give the question its answer, or say why there is none."""
        job = self._opened()
        needed = self._settings.operator.snapshots_wanted
        held = self._held(job) if self._newest == (job.segment, question.base_step) else 0
        if held < needed:
            question.lack(f"the window holds {held} of {needed} snapshots", held)
            return
        if question.seconds_left() <= 0.0:
            question.decline("no answer in time")
            return
        try:
            checked = check_answer(self._predict(job, question), question, job.segment)
            if not question.one_by_one:
                checked = self._with_displacements(checked, question)
        finally:
            self._count_bytes(job)
        question.answer(checked)

    def fetch(self, fetch: Fetch) -> None:
        """Bring the displacement of a prediction."""
        if fetch.seconds_left() <= 0.0:
            fetch.decline("no answer in time")
            return
        job = self._opened()
        try:
            displacement = fetch.prediction.displacement
        finally:
            self._count_bytes(job)
        fetch.answer(as_tensors(check_displacement(displacement, self._settings.tensors)))

    def report(self, outcome: Outcome) -> None:
        """Report what became of a prediction."""
        self._opened().report(
            outcome.prediction_id,
            accepted=outcome.accepted,
            loss_before=outcome.loss_before,
            loss_after=outcome.loss_after,
        )

    def close(self, *, keep: bool) -> None:
        """Give the job up, or keep it for the next writer; an error is ignored: the lease expires by itself."""
        if self._job is not None:
            with contextlib.suppress(KoopcastError):
                self._job.close(keep=keep, timeout_seconds=_CLOSE_SECONDS)

    def _open_job(self) -> Job:
        settings = self._settings
        return self._client.open_job(
            settings.name,
            settings.tensors,
            stride=settings.stride,
            operator=settings.operator,
            take_over=settings.unique,
            lease_id=self._lease_id,
            **self._holding(),
        )

    def _holding(self) -> dict[str, Any]:
        """What `Client.open_job` is told of who holds the snapshots, and of how they travel."""
        settings = self._settings
        return {"wire_dtype": settings.wire_dtype, "keep_weights": False, "encoding": settings.encoding}

    def _send(self, job: Job, snapshot: Snapshot) -> PushResult:
        return job.push(
            snapshot.step,
            snapshot.buffer.tensors,
            averaging=self._settings.averaging,
            clock=snapshot.clock,
        )

    def _held(self, job: Job) -> int:
        """Snapshots in the window."""
        return job.snapshots_held

    def _predict(self, job: Job, question: Question) -> list[Prediction]:
        """Ask on the clock where the question has one, and on the steps where that clock does not serve."""
        if question.clock_intervals:
            try:
                return self._ask(job, question, question.clock_intervals, question.from_clock)
            except FailedPrecondition as refusal:
                if refusal.reason != _UNEVEN_CLOCK:
                    raise
        return self._ask(job, question)

    def _ask(
        self,
        job: Job,
        question: Question,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
    ) -> list[Prediction]:
        return job.predict_ahead(
            question.horizons,
            from_step=question.from_step,
            operators=question.operators,
            timeout_seconds=max(0.001, question.seconds_left()),
            clock_intervals=clock_intervals,
            from_clock=from_clock,
            reports_only=True,
        )

    def _with_displacements(self, predictions: Sequence[Prediction], question: Question) -> list[Prediction]:
        """Bring them all while the window is as it was: what moves, as far as the time goes.

        Raises:
            DeadlineExceeded: it did not go far enough.
        """
        found = []
        for prediction in predictions:
            if question.seconds_left() <= 0.0:
                raise DeadlineExceeded("the displacements did not come in time")
            found.append(self._with_displacement(prediction) if prediction.moved else prediction)
        return found

    def _with_displacement(self, prediction: Prediction) -> Prediction:
        checked = check_displacement(prediction.displacement, self._settings.tensors)
        return replace(prediction, _displacement=lambda: checked)

    def _opened(self) -> Job:
        if self._job is None:
            raise NotFound(f"job {self._settings.name!r} is not open", reason="NOT_OPEN")
        return self._job

    def _forget(self, job: Job) -> None:
        sent, resent, received = self._bytes_before
        self._bytes_before = (sent + job.bytes_sent, resent + job.bytes_resent, received + job.bytes_received)
        self._job = None
        self._used_segment = 0

    def _count_bytes(self, job: Job) -> None:
        sent, resent, received = self._bytes_before
        self._counters.bytes_sent = sent + job.bytes_sent
        self._counters.bytes_resent = resent + job.bytes_resent
        self._counters.bytes_received = received + job.bytes_received
