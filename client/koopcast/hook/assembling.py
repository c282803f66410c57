"""Puts the hook's parts together, for a rank that decides, one that follows with its own part, or one that only follows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from koopcast.client import Client, connect
from koopcast.hook.arguments import Timing
from koopcast.hook.attempts import Attempts
from koopcast.hook.budget import WaitBudget
from koopcast.hook.gradients import GradientEvaluator
from koopcast.hook.held_job import JobSettings
from koopcast.hook.holding import Holding, RingPlan, hold_at_service, hold_in_ring
from koopcast.hook.leader import Leader, QuestionSettings
from koopcast.hook.loop import Trainer
from koopcast.hook.parts import PartFollower, PartLeader
from koopcast.hook.policy import SearchOrder
from koopcast.hook.ranks import Ranks
from koopcast.hook.recorder import Recorder
from koopcast.hook.refined_attempts import RefinedAttempts, RefiningPlan
from koopcast.hook.regime import Regime
from koopcast.hook.scalars import Scalars
from koopcast.hook.shared_rows import SharedRowsJob
from koopcast.hook.stats import Counters
from koopcast.hook.together import LedAttempts, SharedEvaluator, Together
from koopcast.hook.trial import Evaluator, OnJump, Probe

__all__ = ["Callbacks", "Parts", "Service", "assemble"]

_CALL_SECONDS: Final = 5.0
"""Deadline of the background thread's calls: short enough that a lost service is found again within 30 s."""
_FIRST_OPEN_SECONDS: Final = 2.0
"""How long `attach` waits for the job to open, so that the first snapshot finds it open."""


@dataclass(frozen=True, slots=True)
class Service:
    """How the service is reached: see `koopcast.connect`."""

    target: str | None
    token: str | None
    ca: str | os.PathLike[str] | bytes | None
    insecure: bool

    def connect(self, target: str | None) -> Client:
        """Connect to it, at this address."""
        return connect(
            target, token=self.token, ca=self.ca, insecure=self.insecure, timeout_seconds=_CALL_SECONDS
        )


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the user gave to call; `strict`: what they raise goes on into the training loop."""

    probe: Probe | None
    on_jump: OnJump | None
    strict: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """What the hook is made of, as the arguments gave it.

    `ring`: None where the service holds the snapshots. `refining`: None where jumps are not refined.
    """

    service: Service
    job: JobSettings
    ring: RingPlan | None
    timing: Timing
    question: QuestionSettings
    callbacks: Callbacks
    order: SearchOrder
    scalars: Scalars
    observing: bool
    counters: Counters
    regime: Regime
    refining: RefiningPlan | None


def assemble(trainer: Trainer, parts: Parts, ranks: Ranks) -> Leader | PartFollower | None:
    """This rank's side; None for one that has nothing to do but to take over what the first one decides.

    Collective where each rank has a part.
    """
    if parts.ring is not None and parts.ring.shard is not None:
        return _with_parts(trainer, parts, parts.ring, ranks)
    if not ranks.leading:
        return None
    counters, timing = parts.counters, parts.timing
    client = parts.service.connect(parts.service.target)
    budget = WaitBudget(timing.wait_seconds, counters)
    if parts.ring is None:
        on_gpu = trainer.selection.on_gpu
        holding = hold_at_service(client, parts.job, budget, counters, pinned=on_gpu, lag=timing.lag)
    else:
        holding = hold_in_ring(client, parts.job, parts.ring, budget, counters, ranks)
    recorder = _recorder(trainer, parts, holding, budget)
    attempts = _attempts(trainer, parts, recorder, holding, ranks)
    leader = Leader(attempts, recorder, holding.link, parts.question, budget, parts.scalars, counters)
    leader.shared = ranks.several
    holding.link.start(_FIRST_OPEN_SECONDS)
    return leader


def _attempts(trainer: Trainer, parts: Parts, recorder: Recorder, holding: Holding, ranks: Ranks) -> Attempts:
    """Attempts that refine what they find, where that is possible: of a lone trainer with a probe and room for it."""
    callbacks, counters = parts.callbacks, parts.counters
    probe = _announced(callbacks.probe, ranks)
    if parts.refining is None or probe is None or ranks.several:
        evaluator = Evaluator(trainer.model, probe, callbacks.on_jump, counters, strict=callbacks.strict)
        return Attempts(
            evaluator,
            trainer.optimizer,
            recorder,
            holding.displacements,
            parts.order,
            observing=parts.observing,
            regime=parts.regime,
        )
    gradients = GradientEvaluator(trainer.model, probe, callbacks.on_jump, counters, strict=callbacks.strict)
    return RefinedAttempts(
        gradients,
        trainer.optimizer,
        recorder,
        holding.displacements,
        parts.order,
        observing=parts.observing,
        plan=parts.refining,
    )


def _with_parts(trainer: Trainer, parts: Parts, plan: RingPlan, ranks: Ranks) -> Leader | PartFollower:
    """The side of a rank that holds a part; the first one opens the job, and the others join it."""
    counters, callbacks = parts.counters, parts.callbacks
    client = parts.service.connect(parts.service.target) if ranks.leading else None
    target = ranks.tell_text(client.target if client is not None else "")
    if client is None:
        client = parts.service.connect(parts.service.target or target)
    budget = WaitBudget(parts.timing.wait_seconds, counters)
    holding = hold_in_ring(client, parts.job, plan, budget, counters, ranks)
    recorder = _recorder(trainer, parts, holding, budget)
    evaluator = SharedEvaluator(
        trainer.model, callbacks.probe, callbacks.on_jump, counters, strict=callbacks.strict, ranks=ranks
    )
    together = Together(ranks, _shared(holding), holding.link)
    if ranks.leading:
        attempts = LedAttempts(
            evaluator,
            trainer.optimizer,
            recorder,
            holding.displacements,
            parts.order,
            observing=parts.observing,
            regime=parts.regime,
        )
        attempts.together = together
        leader = PartLeader(attempts, recorder, holding.link, parts.question, budget, parts.scalars, counters)
        leader.shared = True
        holding.link.start(_FIRST_OPEN_SECONDS)
        together.begin(parts.job.stride)
        return leader
    follower = PartFollower(evaluator, trainer.optimizer, recorder, holding.displacements, together, counters)
    together.begin(parts.job.stride)
    holding.link.start(_FIRST_OPEN_SECONDS)
    return follower


def _recorder(trainer: Trainer, parts: Parts, holding: Holding, budget: WaitBudget) -> Recorder:
    counters = parts.counters
    counters.snapshot_bytes = holding.pool.snapshot_bytes
    return Recorder(trainer.selection, holding.link, holding.pool, parts.timing.averaging, budget, counters)


def _announced(probe: Probe | None, ranks: Ranks) -> Probe | None:
    """The probe; other ranks, who wait for what the first one decides, are told each time that it takes a while."""
    if probe is None or not ranks.several:
        return probe

    def announced() -> object:
        ranks.busy()
        return probe()

    return announced  # type: ignore[return-value]  # gives what the probe gives


def _shared(holding: Holding) -> SharedRowsJob:
    if not isinstance(holding.job, SharedRowsJob):
        raise TypeError("parts are held by a SharedRowsJob")
    return holding.job
