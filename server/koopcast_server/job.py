"""One job: what it is made of, what happened to it, and what may be said of it.

Its state changes on the event loop only; work on its window, which waits for the engine, holds its `device_lock`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

from koopcast.encoding import DifferenceCode, EncodingName
from koopcast.errors import AlreadyExists, FailedPrecondition, NotFound
from koopcast.messages import tensors_to_messages
from koopcast.operator import Operator
from koopcast.prediction import Block, Summary
from koopcast.status import HistoryPoint, JobStatus
from koopcast.wire import Layout, TensorSpec
from koopcast_server.answering import Answer
from koopcast_server.engine import Engine
from koopcast_server.held_grams import HeldGrams
from koopcast_server.held_window import HeldWindow
from koopcast_server.kept_answers import KeptAnswers
from koopcast_server.koopman import TrustedHorizon
from koopcast_server.leases import WriterLease

if TYPE_CHECKING:
    from koopcast_server.gram_rows import GramRows
    from koopcast_server.judging import SnapshotIdentity
    from koopcast_server.uploads import Upload

__all__ = ["Job", "JobSpec", "difference"]

_REMEMBERED_PREDICTIONS: Final = 1024
_HISTORY: Final = 512
_COMPARED_TENSORS: Final = 4096
"""So many are compared by name; of more it would take the event loop too long."""
_PAGES: Final = 8
"""Pages of blocks kept for readers that poll."""


@dataclass(frozen=True)
class JobSpec:
    """What a job is made of; two writers mean the same job when these are equal.

    Attributes:
        tensors: name and spec of each tensor, in order.
        stride: trainer steps between two snapshots.
        operator: operator settings.
        window_dtype: element type of the stored velocities.
        wire_dtype: element type of answers.
        trainer_held: whether the window is held by the trainer.
        shard_count: in how many shards.
        encoding: how snapshots may travel, besides raw.
    """

    tensors: tuple[tuple[str, TensorSpec], ...]
    stride: int
    operator: Operator
    window_dtype: str
    wire_dtype: str
    trainer_held: bool = False
    shard_count: int = 1
    encoding: EncodingName = "raw"

    @cached_property
    def tensors_digest(self) -> bytes:
        """Stands for the tensors in headers. Thousands of them take a while: to be asked for on a worker first."""
        digest = hashlib.sha256()
        for message in tensors_to_messages(dict(self.tensors)):
            data = message.SerializeToString(deterministic=True)
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.digest()

    def same_as(self, other: JobSpec) -> bool:
        """Whether they are equal, by the digests: comparing thousands of tensors takes a while."""
        if self.tensors_digest != other.tensors_digest:
            return False
        return replace(self, tensors=()) == replace(other, tensors=())

    @property
    def holders(self) -> int:
        """Trainers that hold a part of the window; 0: the service holds it."""
        return self.shard_count if self.trainer_held else 0


@dataclass
class Counters:
    """What happened to a job since it was made."""

    snapshots_accepted: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    predictions: int = 0
    jumps_accepted: int = 0
    jumps_rejected: int = 0
    last_prediction_seconds: float = 0.0
    pushed: datetime | None = None


@dataclass(frozen=True)
class JumpOutcome:
    """A prediction that may be reported on: its horizon, and what became of it, None before that is known."""

    horizon_steps: float
    accepted: bool | None = None


@dataclass(eq=False)
class Job:
    """One training run. `segment`, `step` and `averaging` are those of the newest snapshot; `clocks` of those held.

    `device_lock` keeps the window as it is; `answer_lock`, taken before it, bounds answers under way to one.
    `upload` is the snapshot that fills the spare slot, or did when its connection broke; `stored_upload` the lease and
    the snapshot that was stored last. `kept_answers` are those of its writer (True) and of its readers.
    """

    name: str
    owner: str
    spec: JobSpec
    layout: Layout
    window: HeldWindow | HeldGrams
    memory_bytes: int
    lease: WriterLease
    segment: int = 0
    step: int = 0
    averaging: int = 1
    closed: bool = False
    version: int = 0
    counters: Counters = field(default_factory=Counters)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    device_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    answer_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    upload: Upload | None = None
    stored_upload: tuple[str, SnapshotIdentity] | None = None
    settling: asyncio.Future[None] | None = None
    digests: deque[tuple[int, bytes]] = field(default_factory=deque)
    clocks: deque[float] = field(default_factory=deque)
    rows: GramRows | None = None
    granted_segment: int = 0
    predictions: OrderedDict[str, JumpOutcome] = field(default_factory=OrderedDict)
    kept_answers: dict[bool, KeptAnswers] = field(
        default_factory=lambda: {True: KeptAnswers(), False: KeptAnswers()}
    )
    history: deque[HistoryPoint] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    predictability: float | None = None
    trusted: TrustedHorizon = field(init=False)
    code: DifferenceCode | None = field(init=False)
    _reports: dict[tuple[int, int], tuple[Block, ...]] = field(default_factory=dict)
    _summary: Summary | None = None
    _reported_version: int = -1

    def __post_init__(self) -> None:
        """Trust begins at a few strides."""
        self.trusted = TrustedHorizon.initial(self.spec.stride)
        self.code = DifferenceCode.of(self.layout, self.spec.encoding, self.spec.wire_dtype)

    def digest_of(self, step: int) -> bytes | None:
        """Digest of the held snapshot of a step of this segment, None where none is held."""
        return next((digest for held, digest in self.digests if held == step), None)

    def settle_soon(self, engine: Engine) -> None:
        """Ends what was put off when the newest snapshot was published, as soon as nobody else uses the window."""
        self.settling = asyncio.ensure_future(self._settle(engine))
        self.settling.add_done_callback(
            _retrieved
        )  # should it fail, the next one to use the window tries again

    async def _settle(self, engine: Engine) -> None:
        async with self.device_lock:
            if not self.closed:
                await engine.run(self.window.settle)

    def remember_prediction(self, prediction_id: str, horizon_steps: float) -> None:
        """Keeps the id, so that an outcome can be reported; the oldest ones are forgotten."""
        self.predictions[prediction_id] = JumpOutcome(horizon_steps)
        while len(self.predictions) > _REMEMBERED_PREDICTIONS:
            self.predictions.popitem(last=False)

    def note_answer(self, answer: Answer) -> None:
        """Keeps what an answer said of the operators, for plots over time."""
        told = answer.summary
        self.history.append(
            HistoryPoint(
                step=self.step,
                spectral_radius=told.spectral_radius,
                backtest_error=told.backtest_error,
                backtest_error_linear=told.backtest_error_linear,
                horizon_steps=answer.horizon_steps,
                predicted_error=told.predicted_error,
                moved=answer.moved,
            )
        )
        self._note_predictability(told)

    def _note_predictability(self, told: Summary | None) -> None:
        if told is not None and told.predictability is not None:
            self.predictability = told.predictability

    @property
    def newest_segment(self) -> int:
        """The highest segment in use, that of an upload under way included: a new writer begins above it."""
        under_way = self.upload.segment if self.upload is not None else 0
        return max(self.segment, under_way, self.rows.segment if self.rows is not None else 0)

    @property
    def ring(self) -> HeldWindow:
        """The window, where the service holds it.

        Raises:
            FailedPrecondition: the trainer does.
        """
        if isinstance(self.window, HeldGrams):
            raise FailedPrecondition(
                f"the trainer holds the window of job {self.name!r} (window_holder): its snapshots stay there; push Gram "
                "rows, and ask for coefficients",
                reason="WINDOW_AT_TRAINER",
                job=self.name,
            )
        return self.window

    @property
    def grams(self) -> tuple[HeldGrams, GramRows]:
        """The products of the window, and the rows on their way in, where the trainer holds it.

        Raises:
            FailedPrecondition: the service does.
        """
        if self.rows is None or not isinstance(self.window, HeldGrams):
            raise FailedPrecondition(
                f"the service holds the window of job {self.name!r} (window_holder): push its snapshots, and ask for "
                "displacements",
                reason="WINDOW_AT_SERVICE",
                job=self.name,
            )
        return self.window, self.rows

    def report_outcome(self, prediction_id: str, *, accepted: bool) -> bool:
        """Counts a jump and learns from it; the same report again changes nothing. Returns whether it was the first.

        Raises:
            NotFound: no such prediction.
            AlreadyExists: it was reported with the other outcome.
        """
        if prediction_id not in self.predictions:
            raise NotFound(
                f"job {self.name!r} has no prediction {prediction_id!r} (the last {_REMEMBERED_PREDICTIONS} are known)",
                reason="UNKNOWN_PREDICTION",
                prediction=prediction_id,
            )
        jump = self.predictions[prediction_id]
        before = jump.accepted
        if before is None:
            self.predictions[prediction_id] = replace(jump, accepted=accepted)
            self.trusted = self.trusted.after(jump.horizon_steps, accepted=accepted)
            self.counters.jumps_accepted += accepted
            self.counters.jumps_rejected += not accepted
        elif before != accepted:
            raise AlreadyExists(
                f"prediction {prediction_id!r} was reported as {'accepted' if before else 'rejected'} before",
                reason="OUTCOME_REPORTED",
                prediction=prediction_id,
            )
        return before is None

    async def reports(
        self, engine: Engine, first: int = 0, count: int = 256
    ) -> tuple[tuple[Block, ...], Summary | None]:
        """Operators of the window as it is now, `count` of them from number `first`, and all of them together.

        Computed once for each state of the window; at the horizon that is trusted now.
        """
        async with self.device_lock:
            if self._reported_version != self.version and not self.closed:
                self._reports.clear()
                self._summary = await engine.run(self.window.summary, self.trusted.steps)
                self._reported_version = self.version
                self._note_predictability(self._summary)
            if (first, count) not in self._reports:
                if self.closed:
                    return (), None
                some = await engine.run(self.window.reports, self.trusted.steps, first, count)
                if len(self._reports) >= _PAGES:
                    self._reports.clear()
                self._reports[first, count] = some
            return self._reports[first, count], self._summary

    def describe(self, blocks: tuple[Block, ...] = (), summary: Summary | None = None) -> JobStatus:
        """The job's state."""
        counters = self.counters
        return JobStatus(
            name=self.name,
            owner=self.owner,
            tensors=dict(self.spec.tensors),
            stride=self.spec.stride,
            operator=self.spec.operator,
            window_dtype=self.spec.window_dtype,
            wire_dtype=self.spec.wire_dtype,
            encoding=self.spec.encoding,
            window_holder="trainer" if self.spec.trainer_held else "server",
            shard_count=self.spec.shard_count,
            segment=self.segment,
            step=self.step if self.window.snapshots_held else None,
            snapshots_held=self.window.snapshots_held,
            snapshots_accepted=counters.snapshots_accepted,
            parameters=self.layout.elements,
            memory_bytes=self.memory_bytes,
            bytes_received=counters.bytes_received,
            bytes_sent=counters.bytes_sent,
            predictions=counters.predictions,
            jumps_accepted=counters.jumps_accepted,
            jumps_rejected=counters.jumps_rejected,
            last_prediction_seconds=counters.last_prediction_seconds,
            created=self.created,
            pushed=counters.pushed,
            lease=self.lease.describe(),
            blocks=blocks,
            summary=summary,
            trusted_horizon_steps=self.trusted.steps,
            history=tuple(self.history),
            predictability=self.predictability,
        )


def _retrieved(future: asyncio.Future[None]) -> None:
    """Looks at what a future met, so that nobody is told that nobody did."""
    if not future.cancelled():
        future.exception()


def difference(held: JobSpec, asked: JobSpec) -> str:
    """What differs between two specs, in words."""
    if held.tensors_digest != asked.tensors_digest:
        if max(len(held.tensors), len(asked.tensors)) > _COMPARED_TENSORS:
            return "tensors differ"
        ours, theirs = dict(held.tensors), dict(asked.tensors)
        changed = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return f"tensors differ: {', '.join(changed[:3])}" if changed else "tensors are in another order"
    fields = [
        f
        for f in (
            "stride",
            "operator",
            "window_dtype",
            "wire_dtype",
            "trainer_held",
            "shard_count",
            "encoding",
        )
        if getattr(held, f) != getattr(asked, f)
    ]
    return "; ".join(f"{f} is {getattr(held, f)}, asked for {getattr(asked, f)}" for f in fields)
