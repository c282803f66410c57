"""The job at the service as the hook needs it: opened again when it is lost, one segment for each whole trajectory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from koopcast.client import Client
from koopcast.errors import FailedPrecondition, KoopcastError, LeaseLost, NotFound
from koopcast.hook.question import Question, check_answer
from koopcast.hook.selection import SnapshotBuffer
from koopcast.hook.stats import Counters
from koopcast.job import Job
from koopcast.operator import Operator
from koopcast.prediction import Prediction
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
        self._bytes_before = (0, 0)

    def open(self) -> None:
        """Hold the job: by the lease there was where it still counts, else by opening it. Begins a segment."""
        if self._job is not None:
            try:
                self._job.renew()
            except (NotFound, LeaseLost):
                self._forget(self._job)
        if self._job is None:
            settings = self._settings
            self._job = self._client.open_job(
                settings.name,
                settings.tensors,
                stride=settings.stride,
                operator=settings.operator,
                take_over=settings.unique,
            )
        self.break_off()

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
            result = job.push(
                snapshot.step,
                snapshot.buffer.tensors,
                averaging=self._settings.averaging,
                clock=snapshot.clock,
            )
        except KoopcastError:
            self.break_off()
            raise
        finally:
            self._count_bytes(job)
        self._newest = (job.segment, snapshot.step)
        if result.outcome == "superseded":
            self.break_off()
        else:
            self._counters.snapshots_pushed += 1

    def answer(self, question: Question) -> None:
        """Give the question its answer, or say why there is none."""
        job = self._opened()
        needed = self._settings.operator.snapshots_wanted
        held = job.snapshots_held if self._newest == (job.segment, question.base_step) else 0
        if held < needed:
            question.decline(f"the window holds {held} of {needed} snapshots", held=held)
            return
        if question.seconds_left() <= 0.0:
            question.decline("no answer in time")
            return
        try:
            predictions = self._predict(job, question)
        finally:
            self._count_bytes(job)
        question.answer(check_answer(predictions, question, self._settings.tensors, job.segment))

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

    def _predict(self, job: Job, question: Question) -> list[Prediction]:
        """Ask on the clock where the question has one, and on the steps where that clock does not serve."""
        if question.clock_intervals:
            try:
                return job.predict_ahead(
                    question.horizons,
                    from_step=question.from_step,
                    operators=question.operators,
                    timeout_seconds=question.seconds_left(),
                    clock_intervals=question.clock_intervals,
                    from_clock=question.from_clock,
                )
            except FailedPrecondition as refusal:
                if refusal.reason != _UNEVEN_CLOCK:
                    raise
        return job.predict_ahead(
            question.horizons,
            from_step=question.from_step,
            operators=question.operators,
            timeout_seconds=max(0.001, question.seconds_left()),
        )

    def _opened(self) -> Job:
        if self._job is None:
            raise NotFound(f"job {self._settings.name!r} is not open", reason="NOT_OPEN")
        return self._job

    def _forget(self, job: Job) -> None:
        sent, received = self._bytes_before
        self._bytes_before = (sent + job.bytes_sent, received + job.bytes_received)
        self._job = None
        self._used_segment = 0

    def _count_bytes(self, job: Job) -> None:
        sent, received = self._bytes_before
        self._counters.bytes_sent = sent + job.bytes_sent
        self._counters.bytes_received = received + job.bytes_received
