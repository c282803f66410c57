"""The trainer's side of koopcast: counts steps and meets at the jump steps. Never harms the training loop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from koopcast.hook.ending import at_end
from koopcast.hook.leader import Leader
from koopcast.hook.ranks import Ranks
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.stats import Counters, Stats
from koopcast.hook.watch import Departure

__all__ = ["Ahead"]

_LOG = logging.getLogger("koopcast")


class Ahead:
    """Accelerates a training loop for as long as it is attached. Made by `attach`.

    A context manager, and a plain object with `close`.

    Attributes:
        job: name of the job at the service; under torch.distributed the first rank's.
    """

    def __init__(
        self,
        job: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: JumpSchedule,
        ranks: Ranks,
        leader: Leader | None,
        counters: Counters,
    ) -> None:
        """Register with the optimizer; use `attach`."""
        self.job = job
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._ranks = ranks
        self._leader = leader
        self._counters = counters
        self._clock: float | None = 0.0
        self._rate: float | None = None
        self._departure: Departure | None = None
        self._inside = False
        self._broken = False
        self._finished = False
        self._process_id = os.getpid()
        self._handle = optimizer.register_step_post_hook(self._after_step)
        self._stop = at_end(self, leader.link) if leader is not None else None

    def stats(self) -> Stats:
        """What was done so far."""
        return self._counters.read()

    def start_segment(self) -> None:
        """Say that the weights changed by other means than training, e.g. a checkpoint was loaded.

        The window begins anew. Under torch.distributed: on every rank, at the same step.
        """
        if self._leader is not None:
            self._leader.settle()
            self._leader.recorder.break_off()
        self._schedule.broke(self._counters.steps)

    def close(self, *, keep: bool = False) -> None:
        """Detach from the optimizer and close the job; does nothing the second time. Takes a few seconds at most.

        Args:
            keep: leave the job at the service for the next writer of this name.
        """
        self._finished = True
        self._counters.end()
        if not self._inside:  # hooks must not go while the optimizer walks through them
            self._handle.remove()
        if self._stop is not None and self._leader is not None and self._stop.detach() is not None:
            self._leader.settle()
            self._leader.link.stop(keep=keep)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception keep the job for the next writer, since the run may come back."""
        self.close(keep=kind is not None)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Runs on the training thread after every step of the optimizer."""
        if self._inside or self._finished or os.getpid() != self._process_id or _was_skipped(optimizer):
            return
        started = time.perf_counter()
        self._inside = True
        try:
            self._count_step()
            if self._counters.steps == self._schedule.watched_at:
                self._look_back()
            self._record()
            if self._counters.steps == self._schedule.decided_at:
                self._meet()
        finally:
            self._inside = False
            self._counters.seconds_in_hook += time.perf_counter() - started

    def _count_step(self) -> None:
        self._counters.steps += 1
        self._rate = rate = _learning_rate(self._optimizer)
        self._clock = self._clock + rate if self._clock is not None and rate is not None else None

    def _record(self) -> None:
        if self._leader is None or self._broken:
            return
        step, schedule = self._counters.steps, self._schedule
        try:
            pushed = self._leader.recorder.step(step, self._clock, due=schedule.is_snapshot_due(step))
            if step == schedule.asked_at:
                self._leader.ask(schedule, pushed=pushed, clock=self._clock, rate=self._rate)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._break(error)

    def _meet(self) -> None:
        """Decide, or learn what the first rank decided. All ranks come here at the same steps."""
        schedule = self._schedule
        jumped = self._led(lambda leader: leader.decide(schedule))
        decision = self._ranks.agree([jumped, self._broken, schedule.origin, schedule.asked_at])
        if decision[1]:
            self._finished = True
            return
        schedule.adopt(decision[2], decision[3])
        if decision[0]:
            if schedule.watching and not self._ranks.leading:
                self._departure = Departure(self._model, self._optimizer)
            tensors: list[Tensor] = [*self._model.parameters(), *self._model.buffers()]
            self._ranks.copy_from_first(tensors)
            if not self._ranks.leading:
                self._counters.last_decision = "jumped with the first rank"

    def _look_back(self) -> None:
        """Undo the last jump if it went wrong, on all ranks."""
        undone = self._led(Leader.look_back)
        decision = self._ranks.agree([undone, self._broken])
        departure, self._departure = self._departure, None
        self._schedule.watched_at = None
        if decision[1]:
            self._finished = True
        elif decision[0]:
            self._schedule.broke(self._counters.steps)
            if departure is not None:
                departure.restore()
                self._counters.last_decision = "undone with the first rank"

    def _led(self, act: Callable[[Leader], bool]) -> bool:
        """What the leader says; False on other ranks, and where something is wrong."""
        if self._leader is None or self._broken:
            return False
        try:
            return act(self._leader)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._break(error)
            return False

    def _break(self, error: Exception) -> None:
        """Something here is wrong: stop at the next meeting, and leave training alone until then."""
        self._broken = True
        self._counters.last_decision = f"stopped: {error!r}"
        _LOG.warning("koopcast stops, training goes on without it: %r", error)


def _learning_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """Of the first group; None where it lives on a device and would cost a synchronisation a step."""
    rate: Any = optimizer.param_groups[0].get("lr")
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" else None
    return rate if isinstance(rate, int | float) else None


def _was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer under GradScaler found infinite gradients and left the weights alone."""
    found: Any = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())
