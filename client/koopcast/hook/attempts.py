"""Looks for a jump among predictions, and makes it: search, trial, and what to go back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from koopcast.hook.displacements import Displacements, HeldDisplacements
from koopcast.hook.memory import Arena
from koopcast.hook.policy import Choice, SearchOrder, choose_by_backtest, choose_by_loss
from koopcast.hook.recorder import Recorder
from koopcast.hook.regime import WORTHWHILE_PREDICTABILITY, Regime
from koopcast.hook.trial import Evaluator, Trial
from koopcast.hook.watch import Departure
from koopcast.prediction import Prediction

__all__ = ["Attempts"]


class Attempts:
    """Attempts to jump, one after the other, on one model.

    Attributes:
        order: in which order a probe looks at the predictions.
        observing: whether jumps are chosen and never made.
        regime: what is known of the noise in training.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        displacements: Callable[[], Displacements],
        order: SearchOrder,
        *,
        observing: bool,
        regime: Regime,
    ) -> None:
        """Try on this model; `displacements` makes what finds those of one attempt."""
        self.regime = regime
        self.order = order
        self.observing = observing
        self._evaluator = evaluator
        self._optimizer = optimizer
        self._recorder = recorder
        self._displacements = displacements

    def loss_now(self) -> float:
        """The probe's loss of the model as it is."""
        return self._trial(HeldDisplacements(), Arena()).loss_now()

    @property
    def hopeless(self) -> bool:
        """Whether looking at predictions would be a waste: the operator foretells little, and nothing else promises more.

        A probe may find out otherwise where training is not noisy.
        """
        regime = self.regime
        foretold = regime.predictability is not None and regime.predictability >= WORTHWHILE_PREDICTABILITY
        return not (foretold or self.observing or (self._evaluator.probe is not None and not regime.noisy))

    @property
    def refining(self) -> bool:
        """Whether there is something to be done where no prediction moves anything."""
        return False

    def look_around(self, step: int) -> None:
        """At a snapshot, once: find out what training is like. Nothing here."""

    def compare(self, step: int) -> None:
        """After every step: finish what `look_around` began. Nothing here."""

    def held(self, loss: float, step: int) -> None:
        """A jump was looked back on, and stays. Nothing here."""

    def gather(self) -> None:
        """At every snapshot: look at the gradients of training. Nothing here."""

    def better(self) -> Tensor | None:
        """Weights better than training's own that are kept beside it. None here."""
        return None

    def go_on(self, loss: float | None, step: int) -> tuple[Choice, Departure | None]:  # noqa: ARG002  # likewise
        """After a jump was undone: do better, if that can be done. Nothing here."""
        return Choice(None, False, "nothing to go on from"), None

    def further(self, step: int) -> Choice | None:  # noqa: ARG002  # likewise
        """After every step: go on with what paused in the last one; None: there is nothing."""
        return None

    def choose(
        self,
        predictions: Sequence[Prediction],
        *,
        undoable: bool,
        step: int,  # noqa: ARG002  # for those that refine
    ) -> tuple[Choice, Departure | None]:
        """Search, and make the jump if one is accepted.

        Args:
            predictions: those that move something.
            undoable: whether the jump may have to be undone: it is to be watched, or other ranks must make it, too.
            step: the trainer's.

        Returns:
            what was decided, and what to go back to where an undoable jump was made.
        """
        displacements = self._displacements()
        arena = self._recorder.lend()
        departure = None
        try:
            choice, trial = self._search(predictions, displacements, arena)
            if trial is None or choice.prediction is None:
                return choice, None
            before = Departure(trial.weights, self._optimizer, arena) if undoable else None
            if not trial.keep(choice.prediction):
                why = displacements.failure or "on_jump raised, or weights were not finite"
                return replace(choice, accepted=False, reason=f"the jump was undone: {why}"), None
            departure = before
            return choice, departure
        finally:
            if departure is None:
                arena.release()

    def _search(
        self, predictions: Sequence[Prediction], displacements: Displacements, arena: Arena
    ) -> tuple[Choice, Trial | None]:
        """What to do, and the trial to do it with; None where there is nothing to do."""
        if self._evaluator.probe is None:
            choice = choose_by_backtest(predictions)
            trial = None
        else:
            trial = self._trial(displacements, arena)
            choice = choose_by_loss(predictions, trial.loss_now(), trial.evaluate, self.order)
        if not choice.accepted:
            missed = f" ({displacements.failure})" if displacements.failure else ""
            return replace(choice, reason=choice.reason + missed), None
        if self.observing:
            would = choice.reason.replace("jumped", "would have jumped", 1)
            return replace(choice, accepted=False, reason=f"observed: {would}"), None
        return choice, trial if trial is not None else self._trial(displacements, arena)

    def _trial(self, displacements: Displacements, arena: Arena) -> Trial:
        self._recorder.hold_writers()
        return Trial(self._evaluator, self._optimizer, self._recorder.parameters(), displacements, arena)
