"""Attempts whose jumps are refined, where training is deterministic; elsewhere plain ones (`koopcast.hook.attempts`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from koopcast.hook.attempts import Attempts
from koopcast.hook.displacements import Displacements, HeldDisplacements
from koopcast.hook.gradients import GradientEvaluator, GradientTrial, gradient_of_step
from koopcast.hook.memory import Arena, stir
from koopcast.hook.optimizer_state import halt
from koopcast.hook.policy import Choice, SearchOrder, choose_by_loss
from koopcast.hook.recorder import Recorder
from koopcast.hook.refining import MOST_PAIRS, Point, Refiner
from koopcast.hook.regime import Regime, tells_noise
from koopcast.hook.selection import Selection
from koopcast.hook.watch import Departure
from koopcast.prediction import Prediction

__all__ = ["RefinedAttempts", "RefiningPlan", "plan_refining"]

_MEMORY_BYTES: Final = 256 << 20
"""Most that refining may hold at the trainer."""
_AT_ONCE: Final = 20
"""Evaluations after which training has a step, so that it can log, evaluate and save while a jump is refined."""
_FEWEST_PAIRS: Final = 5
"""With less memory of the path than this, refining is not worth while."""
_POINTS: Final = 9
"""Vectors of the model's size that refining holds besides its pairs: points, gradients, the metric."""


@dataclass(frozen=True, slots=True)
class RefiningPlan:
    """How jumps are refined.

    Attributes:
        limit: most evaluations for one jump; 0: jumps are not refined, and the noise is found out all the same.
        pairs: secant pairs kept.
        halting: whether the optimizer forgets where it was going once a jump was refined.
        regime: what is known of the noise; found out here.
    """

    limit: int
    pairs: int
    halting: bool
    regime: Regime


def plan_refining(
    refine: int | None,
    selection: Selection,
    regime: Regime,
    *,
    window_steps: int,
    halting: bool,
    possible: bool,
) -> RefiningPlan | None:
    """The plan: no refinement where it is not possible or has no room; None where gradients cannot be looked at."""
    parameters = selection.parameters().values()
    if selection.sharded or len({(parameter.device, parameter.dtype) for parameter in parameters}) > 1:
        return None
    vector_bytes = sum(parameter.numel() * max(4, parameter.element_size()) for parameter in parameters)
    pairs = min(MOST_PAIRS, (_MEMORY_BYTES // vector_bytes - _POINTS) // 2)
    limit = window_steps if refine is None else refine
    if not possible or pairs < _FEWEST_PAIRS:
        limit = 0
    return RefiningPlan(limit, max(pairs, 1), halting, regime)


class RefinedAttempts(Attempts):
    """Attempts of a trainer that is alone. Also finds out whether its training is deterministic.

    Attributes:
        regime: what is known of that.
    """

    _evaluator: GradientEvaluator

    def __init__(
        self,
        evaluator: GradientEvaluator,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        displacements: Callable[[], Displacements],
        order: SearchOrder,
        *,
        observing: bool,
        plan: RefiningPlan,
    ) -> None:
        """Try on this model."""
        super().__init__(
            evaluator, optimizer, recorder, displacements, order, observing=observing, regime=plan.regime
        )
        self._plan = plan
        self._refiner = Refiner(plan.limit, plan.pairs, _AT_ONCE)
        self._unchecked: tuple[Tensor, int] | None = None  # gradient of the probe, after which step
        self._looked_back: Tensor | None = None
        self._looked = False
        self._landed_words = ""  # of the jump that is refined, where there was one
        self._replaced = recorder.replaced
        # Not `self._tensors`: without a cycle a model is freed as soon as its last user lets go of it.
        evaluator.parameters = lambda: list(recorder.parameters().values())
        evaluator.wanted = False
        evaluator.gradient = None

    @property
    def refining(self) -> bool:
        """Whether jumps are refined at present: then there may be one without a prediction."""
        return self._plan.limit > 0 and self.regime.deterministic and not self.observing

    def look_around(self, step: int) -> None:
        """The first time, ask the probe where training stands, to compare its gradient with that of the next step.

        With other random numbers than that step will have, or dropout would look like no noise at all.
        """
        if self._looked:
            return
        self._looked = True
        self._evaluator.wanted = True
        trial = self._trial(HeldDisplacements(), Arena())
        stir()
        trial.loss_now()
        self._evaluator.wanted = False
        now = trial.now
        if now is not None:
            self._refiner.note(now.loss, step)
            self._unchecked = now.gradient, step

    def compare(self, step: int) -> None:
        """After the step that began where the probe was asked last: how far its gradient agrees with the probe's."""
        if self._unchecked is None or step <= self._unchecked[1] or not tells_noise(self._optimizer):
            return
        (expected, _), self._unchecked = self._unchecked, None
        made = gradient_of_step(self._tensors())
        if made is None:
            return
        lengths = float(torch.linalg.vector_norm(expected)) * float(torch.linalg.vector_norm(made))
        if math.isfinite(lengths) and lengths > 0.0:
            self.regime.agreement = float(torch.dot(expected, made.to(expected))) / lengths

    def loss_now(self) -> float:
        """The probe's loss of the model as it is; where jumps are refined, whether training still has no noise, too."""
        if not self.refining:
            return super().loss_now()
        trial = self._probed(HeldDisplacements(), Arena())
        if trial.now is None:
            return math.nan
        self._looked_back = trial.now.gradient
        return trial.now.loss

    def held(self, loss: float, step: int) -> None:
        """Training could hold what the last jump won, and goes on from where the probe was just asked."""
        self._refiner.note(loss, step)
        if self._looked_back is not None:
            self._unchecked, self._looked_back = (self._looked_back, step), None

    def gather(self) -> None:
        """At every snapshot: what refining needs to know of the gradients of training."""
        if not (self.refining or (self._plan.limit > 0 and not self._looked)):
            self._refiner.squares.forget()
        else:
            made = gradient_of_step(self._tensors())
            if made is not None and bool(torch.isfinite(made).all()):
                self._refiner.squares.add(made)

    def better(self) -> Tensor | None:
        """Weights that refining found and training could not hold, where they are better than training's; 1-d."""
        self._check_replaced()
        return self._refiner.ahead

    def choose(
        self, predictions: Sequence[Prediction], *, undoable: bool, step: int
    ) -> tuple[Choice, Departure | None]:
        """Search, refine, and move if that helps; see `Attempts.choose`."""
        self._check_replaced()
        if not self.refining:
            return super().choose(predictions, undoable=undoable, step=step)
        displacements = self._displacements()
        arena = self._recorder.lend()
        departure = None
        try:
            trial = self._probed(displacements, arena)
            choice, target = self._looked_for(trial, predictions, step)
            made, departure = self._make(trial, choice, target, arena, undoable=undoable)
            if target is None or not made:
                self._refiner.unfinished = False
            if choice.moved and not made:
                return replace(choice, accepted=False, refined_loss=None, reason="the jump was undone"), None
            loss = choice.final_loss if choice.moved or trial.now is None else trial.now.loss
            if loss is not None:
                self._refiner.note(loss, step, watched=target is not None and departure is not None)
            if not choice.moved and trial.now is not None:
                self._unchecked = trial.now.gradient, step
            return choice, departure
        finally:
            if departure is None:
                arena.release()

    def go_on(self, loss: float | None, step: int) -> tuple[Choice, Departure | None]:
        """Training has lost what the last refinement won: go back to where that ended, and on from there.

        Args:
            loss: of the weights that training went back to.
            step: the trainer's.

        Returns:
            what came of it, and what to go back to; a choice that moves nothing where it is no use.
        """
        self._check_replaced()
        self._looked_back = None
        if loss is not None:
            self._refiner.note(loss, step)
        best = self._refiner.best
        if best is None or self._refiner.stalled:
            return Choice(None, False, "nothing to go on from"), None
        arena = self._recorder.lend()
        departure = None
        try:
            trial = self._trial(HeldDisplacements(), arena)
            point = self._refiner.go_on(trial.at)
            if point is None:
                return Choice(
                    None, False, "training cannot hold what refining found, and it ends there"
                ), None
            self._landed_words = ""
            choice = Choice(None, False, self._words(best.loss, point.loss), best.loss, None, point.loss)
            made, departure = self._make(trial, choice, point, arena, undoable=True)
            if not made:
                self._refiner.unfinished = False
                return Choice(None, False, "where refining led, weights were not finite"), None
            self._refiner.note(point.loss, step, watched=departure is not None)
            return choice, departure
        finally:
            if departure is None:
                arena.release()

    def further(self, step: int) -> Choice | None:
        """After the next step: on with a refinement that paused, from where it did; what training did since is forgotten."""
        self._check_replaced()
        best = self._refiner.best
        if best is None or not (self._refiner.unfinished and self.refining):
            self._refiner.unfinished = False
            return None
        trial = self._trial(HeldDisplacements(), Arena())
        point = self._refiner.further(trial.at)
        if point is None or not trial.place(point.weights):
            self._refiner.unfinished = False
            return None
        if self._plan.halting:
            halt(self._optimizer, self._tensors())
        self._refiner.note(point.loss, step, watched=self._refiner.watched)
        reason = self._landed_words + self._words(self._refiner.began, point.loss)
        return Choice(None, False, reason, best.loss, None, point.loss)

    def _looked_for(
        self, trial: GradientTrial, predictions: Sequence[Prediction], step: int
    ) -> tuple[Choice, Point | None]:
        """What to do, and where it leads if it is more than a predicted jump."""
        now = trial.now
        if now is None:
            why = "the probe's loss or gradient of the current weights is not finite"
            return Choice(None, False, why, math.nan), None
        if self._refiner.is_behind(now.loss):
            # Judged from there, also a stride later: what training comes back to again and again is no measure.
            found = self._refiner.best.loss if self._refiner.best is not None else now.loss
            point = None if self._refiner.stalled else self._refiner.go_on(trial.at)
            choice = Choice(None, False, "training is behind what refining found", found)
        else:
            choice = choose_by_loss(predictions, now.loss, trial.evaluate, self.order)
            landed = trial.landed if choice.accepted else None
            scale = trial.reach or 1e-3 * float(torch.linalg.vector_norm(now.weights))
            point = self._refiner.refine(trial.at, now, landed, step=step, scale=scale)
        reached = (
            choice.loss_after if choice.accepted and choice.loss_after is not None else choice.loss_before
        )
        if point is None or reached is None or not point.loss < reached:
            return choice, None
        self._landed_words = f"{choice.reason}, " if choice.accepted else ""
        reason = self._landed_words + self._words(reached, point.loss)
        return replace(choice, refined_loss=point.loss, reason=reason), point

    def _make(
        self, trial: GradientTrial, choice: Choice, target: Point | None, arena: Arena, *, undoable: bool
    ) -> tuple[bool, Departure | None]:
        """Move to the target, or make the predicted jump. Whether that was done, and what to go back to."""
        if not choice.moved:
            return False, None
        before = Departure(trial.weights, self._optimizer, arena)
        if target is None:
            done = choice.prediction is not None and trial.keep(choice.prediction)
        else:
            done = trial.place(target.weights)
            if done and self._plan.halting:
                halt(self._optimizer, self._tensors())
        if done and undoable:
            return True, before
        before.forget()
        return done, None

    def _probed(self, displacements: Displacements, arena: Arena) -> GradientTrial:
        """A trial that knows loss and gradient of where training stands; the evaluator goes on looking at gradients."""
        self._evaluator.wanted = True
        trial = self._trial(displacements, arena)
        trial.loss_now()
        self._evaluator.wanted = self.regime.deterministic
        return trial

    def _trial(self, displacements: Displacements, arena: Arena) -> GradientTrial:
        self._recorder.hold_writers()
        return GradientTrial(
            self._evaluator, self._optimizer, self._recorder.parameters(), displacements, arena
        )

    def _tensors(self) -> list[Tensor]:
        return list(self._recorder.parameters().values())

    def _check_replaced(self) -> None:
        if self._replaced != self._recorder.replaced:
            self._replaced = self._recorder.replaced
            self._refiner.forget()

    def _words(self, before: float, after: float) -> str:
        return f"refined in {self._refiner.used} evaluations: loss {before:.6g} to {after:.6g}"
