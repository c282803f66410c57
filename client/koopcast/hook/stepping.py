"""What happens after every step of the optimizer: counts steps and meets at the jump steps. Never harms training."""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from koopcast.hook.averaging import EvaluationAverage
from koopcast.hook.ending import at_end
from koopcast.hook.leader import Leader
from koopcast.hook.loop import LoopSettings, RateWatch, Trainer, is_break, was_skipped
from koopcast.hook.memory import weights_of
from koopcast.hook.optimizer_state import adjust
from koopcast.hook.parts import PartFollower, PartLeader
from koopcast.hook.ranks import Ranks, RanksLostError
from koopcast.hook.regime import Regime
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.stats import Counters, RateChange
from koopcast.hook.watch import Departure

__all__ = ["Stepping"]

_LOG = logging.getLogger("koopcast")

_NOISY: Final = (None, False, True)
"""What may be known of noise, by the number that says it to other ranks."""


class Stepping:
    """Lives in an optimizer's hooks.

    Attributes:
        job: name of the job at the service; under torch.distributed the first rank's.
    """

    def __init__(  # noqa: PLR0913  # the parts of a hook; only `attach` puts them together
        self,
        job: str,
        trainer: Trainer,
        schedule: JumpSchedule,
        ranks: Ranks | None,
        leader: Leader | PartFollower | None,
        settings: LoopSettings,
        counters: Counters,
        regime: Regime | None = None,
    ) -> None:
        """Register with the optimizer; use `attach`."""
        self.job = job
        self._trainer = trainer
        self._schedule = schedule
        self._ranks = ranks
        self._leader = leader
        self._settings = settings
        self._counters = counters
        self._regime = regime if regime is not None else Regime()
        self._average = EvaluationAverage(trainer.model, trainer.selection, strict=settings.strict)
        self._paused = False
        self._clock: float | None = 0.0
        self._rates = RateWatch()
        self._departure: Departure | None = None
        self._inside = False
        self._broken = False
        self._finished = False
        self._process_id = os.getpid()
        optimizer = trainer.optimizer
        self._handles = [optimizer.register_step_post_hook(_untraced(self._after_step))]
        if leader is not None and trainer.selection.on_gpu:
            self._handles.append(optimizer.register_step_pre_hook(_untraced(self._before_step)))
        self._stop = at_end(self, leader.link) if leader is not None else None

    def _before_step(self, *_: Any) -> None:
        """Runs on the training thread before every step of the optimizer: it must not overtake the copies."""
        if self._leader is not None and not self._finished and os.getpid() == self._process_id:
            self._leader.recorder.hold_writers()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Runs on the training thread after every step of the optimizer."""
        if self._inside or self._finished or os.getpid() != self._process_id or was_skipped(optimizer):
            return
        started = time.perf_counter()
        self._inside = True
        try:
            self._count_step()
            if self._ranks is not None:
                self._act(self._ranks)
                self._average.step(self._rates.rate)
        finally:
            self._inside = False
            self._counters.seconds_in_hook += time.perf_counter() - started
        if self._settings.strict and self._leader is not None:
            error = self._leader.link.take_error()
            if error is not None:
                raise error

    def _act(self, ranks: Ranks) -> None:
        try:
            if self._counters.steps == self._schedule.watched_at:
                self._look_back(ranks)
            self._record()
            if self._counters.steps == self._schedule.decided_at:
                self._meet(ranks)
        except RanksLostError as error:
            self._finished = True
            self._break(error)

    def _count_step(self) -> None:
        self._counters.steps += 1
        change = self._rates.step(self._trainer.optimizer, self._counters.steps)
        rate = self._rates.rate
        self._clock = self._clock + rate if self._clock is not None and rate is not None else None
        if change is not None:
            self._note_rate(change)

    def _note_rate(self, change: RateChange) -> None:
        """Count a change of a learning rate; one that breaks the path begins a new window, on all ranks."""
        counters = self._counters
        counters.learning_rate_changes += 1
        counters.last_learning_rate_change = change
        if counters.learning_rate_changes == 1:
            _LOG.info(
                "koopcast: learning rate %g to %g at step %d (group %d); told once, counted in stats()",
                change.before, change.after, change.step, change.group,
            )  # fmt: skip
        if self._ranks is None or self._settings.learning_rate is not None or not is_break(change):
            return
        if self._schedule.is_pausing(counters.steps):
            return  # there is no path that could break
        watched_at = self._schedule.watched_at
        self._schedule.broke(counters.steps - 1)  # the step just made is the first of the new path
        self._schedule.watched_at = watched_at  # the last jump is looked back on all the same
        if self._leader is not None:
            self._leader.recorder.break_off()
        self._begin_alike()
        counters.last_decision = (
            f"a new window began at step {change.step}: the learning rate went from {change.before:g} to "
            f"{change.after:g} at once"
        )

    def _begin_alike(self) -> None:
        """The trajectory broke on all ranks: their parts begin a segment with the next snapshot."""
        if isinstance(self._leader, PartLeader | PartFollower):
            self._leader.together.begin_alike(self._schedule.next_snapshot(self._counters.steps))

    def _record(self) -> None:
        if self._leader is None or self._broken:
            return
        step, schedule = self._counters.steps, self._schedule
        try:
            self._leader.notice(step, schedule)
            if self._pauses(step):
                return
            pushed = self._leader.recorder.step(step, self._clock, due=schedule.is_snapshot_due(step))
            if step == schedule.asked_at:
                self._leader.ask(schedule, pushed=pushed, clock=self._clock, rate=self._rates.rate)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._break(error)

    def _pauses(self, step: int) -> bool:
        """Whether the schedule pauses. With the last step of a pause a segment begins, on all ranks."""
        paused, self._paused = self._paused, self._schedule.is_pausing(step)
        if paused and not self._paused and self._leader is not None:
            self._leader.recorder.break_off()
            self._begin_alike()
        return paused or self._paused

    def _meet(self, ranks: Ranks) -> None:
        """Decide, or learn what the first rank decided. All ranks come here at the same steps."""
        schedule = self._schedule
        jumped = self._led(lambda leader: leader.decide(schedule))
        ratio = self._leader.ratio if self._leader is not None else 1.0
        noisy = _NOISY.index(self._regime.noisy)
        try:
            decision = ranks.tell(
                [jumped, schedule.origin, schedule.asked_at, schedule.refusals, _bits_of(ratio), noisy]
            )
            stopped = ranks.any_of(self._broken)
            if decision[0] and not stopped:
                self._share(ranks)
        except RanksLostError:
            if self._leader is not None:
                self._leader.revoke()
            raise
        if stopped:
            self._finished = True
            if self._leader is not None:
                self._leader.revoke()
            return
        schedule.adopt(*decision[1:4])
        self._average.noisy = _NOISY[decision[5]]
        if decision[0]:
            self._follow(_from_bits(decision[4]))
        if isinstance(self._leader, PartLeader | PartFollower) and self._leader.begins:
            self._leader.together.begin(schedule.next_snapshot(self._counters.steps))

    def _share(self, ranks: Ranks) -> None:
        """Make the first rank's jump on all ranks, or on none: where one is lost on the way, weights are as before."""
        watching, model = self._schedule.watching, self._trainer.model
        if ranks.several and not isinstance(self._leader, PartLeader | PartFollower):
            before = None if ranks.leading else weights_of(model)
            tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
            try:
                ranks.copy_from_first(tensors)
                ranks.any_of(False)
            except RanksLostError:
                if before is not None:
                    before.restore()
                raise
            if before is not None and watching:
                self._departure = Departure(before, self._trainer.optimizer)
        if self._leader is not None:
            self._leader.confirm(watching=watching)
        if not ranks.leading:
            self._counters.last_decision = "jumped with the first rank"

    def _follow(self, ratio: float) -> None:
        """After a jump, the optimizer's state is adjusted and an average begins anew, on all ranks."""
        self._average.begin()
        try:
            moved = self._trainer.selection.parameters().values()
            adjust(self._trainer.optimizer, moved, self._settings.optimizer_state, ratio)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._break(error)

    def _look_back(self, ranks: Ranks) -> None:
        """Undo the last jump if it went wrong, on all ranks."""
        undone = self._led(lambda leader: leader.look_back(self._counters.steps))
        decision = ranks.tell([undone])
        stopped = ranks.any_of(self._broken)
        departure, self._departure = self._departure, None
        self._schedule.watched_at = None
        if stopped:
            self._finished = True
        elif decision[0]:
            self._schedule.broke(self._counters.steps)
            self._average.begin()
            if departure is not None:
                departure.restore()
                self._counters.last_decision = "undone with the first rank"
            if self._leader is not None and self._leader.go_back(self._counters.steps):
                self._schedule.watched_at = self._counters.steps + self._schedule.every
            if isinstance(self._leader, PartLeader | PartFollower):
                self._leader.together.begin(self._schedule.next_snapshot(self._counters.steps))
        elif isinstance(self._leader, PartFollower):
            self._leader.settle()

    def _led(self, act: Callable[[Leader | PartFollower], bool]) -> bool:
        """What the leader says; False on other ranks, and where something is wrong."""
        if self._leader is None or self._broken:
            return False
        try:
            return act(self._leader)
        except RanksLostError:
            raise
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._break(error)
            return False

    def _break(self, error: Exception) -> None:
        """Something here is wrong: stop at the next meeting, and leave training alone until then."""
        told, self._broken = self._broken, True
        self._counters.last_decision = f"stopped: {error!r}"
        if self._ranks is not None and isinstance(self._leader, PartLeader | PartFollower):
            self._ranks.close()  # the others cannot go on without this part, and find out at once
        if self._settings.strict:
            raise error
        if not told:
            _LOG.warning("koopcast stops, training goes on without it: %r", error)


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that a compiled step calls as it is, where it would else trace it and make it part of a graph."""
    untraced: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch's
    return untraced


def _bits_of(number: float) -> int:
    """A float as a whole number, for messages of whole numbers."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def _from_bits(bits: int) -> float:
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number
