"""What the hook counts, and the snapshot of it that users see."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

__all__ = ["Counters", "JumpEvent", "RateChange", "Stats"]

_REMEMBERED_JUMPS: Final = 4096
_GO_ON: Final = (
    "steps",
    "snapshots_pushed",
    "snapshots_dropped",
    "jumps_accepted",
    "jumps_rejected",
    "jumps_undone",
    "probe_evaluations",
    "on_jump_evaluations",
    "learning_rate_changes",
    "last_decision",
)
"""Counts of the training run. Those of this process's time and traffic begin anew when a run is resumed."""


@dataclass(frozen=True, slots=True)
class JumpEvent:
    """One proposed jump.

    Attributes:
        step: trainer step at which it was decided.
        horizon: how far ahead the best candidate reached. Unit: trainer steps.
        operator_index: which of the operators gave it.
        loss_before: the probe's loss where training stood; None without a probe.
        loss_after: the probe's loss of the best candidate; None without a probe.
        accepted: whether the weights jumped.
        reason: why, in words.
        probe_evaluations: probes this attempt took.
        seconds: since `attach`, when it was decided.
        undone: whether it was accepted, and undone when looked back on.
    """

    step: int
    horizon: float
    operator_index: int
    loss_before: float | None
    loss_after: float | None
    accepted: bool
    reason: str
    probe_evaluations: int
    seconds: float
    undone: bool = False


@dataclass(frozen=True, slots=True)
class RateChange:
    """A learning rate that another one followed.

    Attributes:
        step: the first step that was made with the new one.
        group: the parameter group, from 0; where several changed at once, the one that changed most.
        before: the rate until then.
        after: the rate from then on.
    """

    step: int
    group: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Stats:
    """What an `Ahead` has done so far.

    Attributes:
        steps: real optimizer steps since `attach`; skipped ones and jumps add none.
        seconds: time since `attach`, until `close`.
        seconds_in_hook: of these, spent on the training thread in the hook: copies, probes and waiting together.
        seconds_blocked: of these, spent waiting for the service.
        snapshots_pushed: snapshots the service accepted.
        snapshots_dropped: snapshots that were due and did not get there.
        jumps_proposed: attempts with an answer that moves something; each was accepted or rejected.
        jumps_accepted: jumps that stayed.
        jumps_rejected: jumps that were refused, declined by the back-test, or undone.
        jumps_undone: of these, jumps that had been accepted, and were undone a stride later (`attach(watch=...)`).
        probe_evaluations: calls of the probe; each costs (its samples / batch samples) steps.
        on_jump_evaluations: calls of `on_jump`; they cost likewise.
        bytes_sent: snapshot bytes sent.
        bytes_resent: of these, what had been sent before, over a connection that broke.
        bytes_received: displacement bytes received.
        snapshot_bytes: bytes of one snapshot before it is encoded.
        service_errors: calls that failed.
        tensorboard_errors: exceptions of the object given as `tensorboard`.
        learning_rate_changes: steps that were made with another learning rate than the one before.
        last_learning_rate_change: the last of them; None where there was none.
        predictability: share of the coming displacement that the operators foretold in the last answer, from the
            back-test, in 0..1: jumps pay where it is high. None: not known yet.
        gradient_agreement: cosine between the gradients of the probe and of a training step at the same weights: 1 where
            training is deterministic, and jumps are refined; below 0.999 it is noisy. None: not known, or no probe that
            returns a tensor.
        connected: whether the service holds the job, as far as is known.
        last_decision: why the last attempt did or did not jump.
        log: the proposed jumps, oldest first (the last 4096).
    """

    steps: int
    seconds: float
    seconds_in_hook: float
    seconds_blocked: float
    snapshots_pushed: int
    snapshots_dropped: int
    jumps_proposed: int
    jumps_accepted: int
    jumps_rejected: int
    jumps_undone: int
    probe_evaluations: int
    on_jump_evaluations: int
    bytes_sent: int
    bytes_resent: int
    bytes_received: int
    snapshot_bytes: int
    service_errors: int
    tensorboard_errors: int
    learning_rate_changes: int
    last_learning_rate_change: RateChange | None
    predictability: float | None
    gradient_agreement: float | None
    connected: bool
    last_decision: str
    log: tuple[JumpEvent, ...] = field(repr=False)


class Counters:
    """The counts behind `Stats`, kept by the training thread and the background thread together."""

    def __init__(self) -> None:
        """Begin at zero, now."""
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._log: deque[JumpEvent] = deque(maxlen=_REMEMBERED_JUMPS)
        self.steps = 0
        self.seconds_in_hook = 0.0
        self.seconds_blocked = 0.0
        self.snapshots_pushed = 0
        self.snapshots_dropped = 0
        self.probe_evaluations = 0
        self.on_jump_evaluations = 0
        self.bytes_sent = 0
        self.bytes_resent = 0
        self.bytes_received = 0
        self.snapshot_bytes = 0
        self.service_errors = 0
        self.tensorboard_errors = 0
        self.learning_rate_changes = 0
        self.last_learning_rate_change: RateChange | None = None
        self.predictability: float | None = None
        self.gradient_agreement: float | None = None
        self.connected = False
        self.last_decision = "no attempt yet"
        self.jumps_accepted = 0
        self.jumps_rejected = 0
        self.jumps_undone = 0

    @property
    def seconds(self) -> float:
        """Time since the start, until the end."""
        return (time.perf_counter() if self._ended is None else self._ended) - self._started

    def end(self) -> None:
        """Stop the clock."""
        if self._ended is None:
            self._ended = time.perf_counter()

    def dropped(self, snapshots: int = 1) -> None:
        """Count snapshots that did not get to the service. Both threads drop some."""
        with self._lock:
            self.snapshots_dropped += snapshots

    def jumped(self, event: JumpEvent) -> None:
        """Count and remember a proposed jump."""
        with self._lock:
            self._log.append(event)
            self.jumps_accepted += event.accepted
            self.jumps_rejected += not event.accepted

    def refined(self, loss: float | None, reason: str, evaluations: int) -> None:
        """The last accepted jump was refined further."""
        self.last_decision = reason
        with self._lock:
            last = self._log[-1]
            spent = last.probe_evaluations + evaluations
            self._log[-1] = replace(last, loss_after=loss, reason=reason, probe_evaluations=spent)

    def undone(self, reason: str) -> None:
        """The last accepted jump was undone."""
        with self._lock:
            self._log[-1] = replace(self._log[-1], accepted=False, undone=True, reason=reason)
            self.jumps_accepted -= 1
            self.jumps_rejected += 1
            self.jumps_undone += 1

    def state(self) -> dict[str, Any]:
        """The counts that go on in a run that is resumed: plain numbers, words and lists of them."""
        stats = self.read()
        change = stats.last_learning_rate_change
        counts = {name: getattr(stats, name) for name in _GO_ON}
        return {
            **counts,
            "last_learning_rate_change": asdict(change) if change is not None else None,
            "log": [asdict(event) for event in stats.log],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        change = state["last_learning_rate_change"]
        with self._lock:
            for name in _GO_ON:
                setattr(self, name, state[name])
            self.last_learning_rate_change = RateChange(**change) if change is not None else None
            self._log = deque((JumpEvent(**event) for event in state["log"]), maxlen=_REMEMBERED_JUMPS)

    def read(self) -> Stats:
        """The counts as they are now."""
        with self._lock:
            return Stats(
                steps=self.steps,
                seconds=self.seconds,
                seconds_in_hook=self.seconds_in_hook,
                seconds_blocked=self.seconds_blocked,
                snapshots_pushed=self.snapshots_pushed,
                snapshots_dropped=self.snapshots_dropped,
                jumps_proposed=self.jumps_accepted + self.jumps_rejected,
                jumps_accepted=self.jumps_accepted,
                jumps_rejected=self.jumps_rejected,
                jumps_undone=self.jumps_undone,
                probe_evaluations=self.probe_evaluations,
                on_jump_evaluations=self.on_jump_evaluations,
                bytes_sent=self.bytes_sent,
                bytes_resent=self.bytes_resent,
                bytes_received=self.bytes_received,
                snapshot_bytes=self.snapshot_bytes,
                service_errors=self.service_errors,
                tensorboard_errors=self.tensorboard_errors,
                learning_rate_changes=self.learning_rate_changes,
                last_learning_rate_change=self.last_learning_rate_change,
                predictability=self.predictability,
                gradient_agreement=self.gradient_agreement,
                connected=self.connected,
                last_decision=self.last_decision,
                log=tuple(self._log),
            )
