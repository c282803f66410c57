"""The trainer's side of koopcast, as its user holds it: what was done, saving and going on, the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor

from koopcast.errors import ArgumentValueError
from koopcast.hook.gradients import assign, shown
from koopcast.hook.parts import PartFollower, PartLeader
from koopcast.hook.rates import check_learning_rate
from koopcast.hook.resuming import SavedRun
from koopcast.hook.stats import Stats
from koopcast.hook.stepping import Stepping

__all__ = ["Ahead"]

_DRAIN_SECONDS: Final = 1.0
"""How long `state_dict` waits for a snapshot on its way."""


class Ahead(Stepping):
    """Accelerates a training loop for as long as it is attached. Made by `attach`.

    A context manager, and a plain object with `close`.

    Attributes:
        job: name of the job at the service; under torch.distributed the first rank's.
    """

    def stats(self) -> Stats:
        """What was done so far."""
        return self._counters.read()

    def start_segment(self) -> None:
        """Say that the weights changed by other means than training, e.g. a checkpoint was loaded.

        The window begins anew. Under torch.distributed: on every rank, at the same step.
        """
        if self._leader is not None:
            self._leader.settle()
            self._leader.recorder.break_off(replaced=True)
        self._schedule.broke(self._counters.steps)
        self._average.begin()
        self._begin_alike()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model has the weights to evaluate, or to keep: averages where training is noisy, else its own.

        Where refining (`attach(refine=...)`) found weights of a lower loss, and training left them again, it has those.

        After it every bit of parameters and buffers is as before, also when an exception leaves it. Not to train in, and not to
        load weights in::

            with ahead.evaluating():
                loss = validate(model)
                torch.save(model.state_dict(), "best.pt")

        What training goes on with is another thing: save that (`state_dict`) outside.

        The average is an exponential one over the last 33 steps, of the parameters that take part and of floating-point
        buffers such as BatchNorm's. It is used where the gradients are known to be noisy (known after the first attempts), from
        20 steps after the last jump on, unless the learning rate has come down to less than a quarter of the largest: then the
        noise has, too. Where it is not used, and after `close`, the model has its own weights.

        It costs, only in noisy training, a copy of the weights (half precision: in float32) where they live, one pass
        over them every 4 steps, and inside a second copy. Under torch.distributed nothing is sent; where the parameters are
        sharded, all ranks must come here at the same step.
        """
        present = not self._finished and os.getpid() == self._process_id
        better = self._better() if present else None
        if better is not None:
            with shown(self._trainer.model, self._trainer.selection.parameters(), better):
                yield
            return
        before = self._average.show(self._hold_writers) if present else None
        try:
            yield
        finally:
            if before is not None:
                self._average.hide(before, self._hold_writers)

    def _better(self) -> Tensor | None:
        """What refining found and training could not hold, where that is the better of both."""
        if self._leader is None or isinstance(self._leader, PartFollower) or self._broken:
            return None
        self._hold_writers()
        return self._leader.better()

    def _hold_writers(self) -> None:
        if self._leader is not None:
            self._leader.recorder.hold_writers()

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on with this run: numbers and names, nothing of the model's size.

        To be saved with the model and the optimizer, and given to `load_state_dict`. It holds the job's lease, a secret:
        with it the job can be taken over for as long as the lease lives. Waits a moment for the last snapshot.
        """
        counters, leader = self._counters, self._leader
        where: Mapping[str, Any] = {"lease_id": "", "segment": 0, "step": 0}
        if leader is not None:
            leader.link.drain(_DRAIN_SECONDS)
            where = leader.link.where()
        return SavedRun(
            job=self.job,
            lease_id=where["lease_id"],
            segment=0 if leader is None or leader.recorder.fresh else where["segment"],
            step=where["step"],
            steps=counters.steps,
            clock=self._clock,
            schedule=self._schedule.state(),
            search=leader.search_state() if leader is not None else None,
            counters=counters.state(),
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on with the run that `state_dict` was called in. Before the first step, on every rank.

        The model, the optimizer and a scheduler given as `learning_rate` must have been loaded before. The window at
        the service goes on where the next snapshot follows the newest one it holds; else a new one begins. A lease that
        the old process died with is taken over, since the state proves that it was this run's. A jump that was not
        looked back on yet stays.

        Returns:
            whether the window goes on.

        Raises:
            ArgumentTypeError, ArgumentValueError: the state is something else or another job's, or training has begun.
        """
        saved = SavedRun.from_dict(state)
        if self._counters.steps:
            raise ArgumentValueError("the state must be loaded before the first step", field="state")
        if self._leader is not None and saved.job != self.job:
            raise ArgumentValueError(
                f"the state is of job {saved.job!r}: attach with job={saved.job!r} to go on with it",
                field="state",
            )
        rates = check_learning_rate(self._settings.learning_rate, self._trainer.optimizer, first=saved.steps)
        self._counters.load(saved.counters)
        self._clock = saved.clock
        goes_on = self._schedule.load(saved.schedule)
        if self._leader is not None:
            following = self._schedule.next_snapshot(saved.steps)
            goes_on = self._leader.resume(saved, rates, following) and goes_on
        if self._ranks is not None:
            goes_on = bool(self._ranks.tell([goes_on])[0])
        if not goes_on:
            self._schedule.broke(saved.steps)
        if isinstance(self._leader, PartLeader | PartFollower):
            self._leader.together.begin(self._schedule.next_snapshot(saved.steps))
        return goes_on

    def close(self, *, keep: bool = False) -> None:
        """Detach from the optimizer and close the job; does nothing the second time. Takes a few seconds at most.

        Where refining found weights of a lower loss that training could not hold, the model ends with them.

        Args:
            keep: leave the job at the service for the next writer of this name, and the model with the weights that
                training goes on with.
        """
        present = not (self._finished or self._inside) and os.getpid() == self._process_id
        better = self._better() if present and not keep else None
        if better is not None:
            assign(self._trainer.selection.parameters(), better)
        self._finished = True
        self._average.end()
        self._counters.end()
        if not self._inside:  # hooks must not go while the optimizer walks through them
            for handle in self._handles:
                handle.remove()
        if self._stop is not None and self._leader is not None and self._stop.detach() is not None:
            self._leader.settle()
            self._leader.link.stop(keep=keep)
        if self._ranks is not None and os.getpid() == self._process_id:
            self._ranks.close()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception keep the job for the next writer, since the run may come back."""
        self.close(keep=kind is not None)
