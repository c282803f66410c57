"""Tries predicted displacements on the live model, and leaves no trace of those that are not accepted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from koopcast.hook.displacements import Displacements
from koopcast.hook.memory import Arena, TensorMemory, TrainerMemory
from koopcast.hook.sharding import local
from koopcast.hook.stats import Counters
from koopcast.prediction import Prediction

__all__ = ["OnJump", "Probe", "Trial"]

Probe = Callable[[], "float | Tensor"]
"""The loss of the model as it is; runs on the training thread with gradients enabled."""
OnJump = Callable[[nn.Module], object]
"""What a jump needs besides new weights, e.g. recomputing BatchNorm statistics."""

_LOG = logging.getLogger("koopcast")


class Evaluator:
    """Calls the user's probe and `on_jump`; one that raises is reported once and counts as a loss of NaN.

    Attributes:
        strict: whether what it raises goes on into the training loop instead.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe | None,
        on_jump: OnJump | None,
        counters: Counters,
        *,
        strict: bool = False,
    ) -> None:
        """Call these for this model."""
        self.strict = strict
        self.model = model
        self.probe = probe
        self.on_jump = on_jump
        self._counters = counters
        self._warned = False

    def adapt(self) -> bool:
        """Run `on_jump`; whether it went well."""
        if self.on_jump is None:
            return True
        self._counters.on_jump_evaluations += 1
        try:
            with torch.enable_grad():
                self.on_jump(self.model)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer from the user's callback
            self._report("on_jump", error)
            return False
        return True

    def loss(self) -> float:
        """Run the probe on the model as it is."""
        if self.probe is None:
            return math.nan
        self._counters.probe_evaluations += 1
        try:
            with torch.enable_grad():
                return self._number(self.probe())
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer from the user's callback
            self._report("the probe", error)
            return math.nan

    def agreed(self, fine: bool) -> bool:  # noqa: FBT001  # the flag is what is agreed on
        """Whether it is fine; where several ranks hold parts of the model, for all of them."""
        return fine

    def _number(self, value: Any) -> float:
        return float(value.detach()) if isinstance(value, Tensor) else float(value)

    def _report(self, what: str, error: Exception) -> None:
        if self.strict:
            raise error
        if not self._warned:
            self._warned = True
            _LOG.warning("koopcast: %s raised %r; the jump is refused, training goes on", what, error)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A prediction that was evaluated: its displacement, and what `on_jump` changed besides (tensor and contents)."""

    prediction: Prediction
    displacement: Mapping[str, Tensor]
    adapted: list[tuple[Tensor, Tensor]]


class Trial:
    """One attempt on the model. Remembers the trainer when made; every evaluation ends with it restored.

    At most two displacements are here at a time, the best one's and the one being looked at.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        displacements: Displacements,
        arena: Arena | None = None,
    ) -> None:
        """Remember everything an evaluation may touch, in `arena` as far as it goes."""
        self._evaluator = evaluator
        self._parameters = parameters
        self._displacements = displacements
        self._memory = TrainerMemory(evaluator.model, optimizer, arena)
        self._best_loss = math.inf
        self._best: _Candidate | None = None

    @property
    def weights(self) -> TensorMemory:
        """Parameters and buffers as they were when this was made."""
        return self._memory.weights

    def loss_now(self) -> float:
        """The probe's loss of the current weights."""
        try:
            self._memory.hide()
            return self._evaluator.loss()
        finally:
            self._memory.restore()

    def evaluate(self, prediction: Prediction) -> float:
        """The probe's loss after this jump; NaN where its displacement is not to be had, or a callback raised."""
        displacement = self._displacements.of(prediction)
        if displacement is None:
            return math.nan
        try:
            self._memory.hide()
            self._translate(displacement)
            if not self._evaluator.adapt():
                return math.nan
            adapted = self._adapted(displacement)
            loss = self._evaluator.loss()
            if loss < self._best_loss:
                self._best_loss, self._best = loss, _Candidate(prediction, displacement, adapted)
            return loss
        finally:
            self._memory.restore()

    def keep(self, prediction: Prediction) -> bool:
        """Make the jump for good: parameters and buffers as `on_jump` left them. False: not possible, undone."""
        best, self._best = self._best, None
        if best is None or best.prediction is not prediction:
            best = self._adapt_unprobed(prediction)
        if best is None:
            return False
        kept = False
        try:
            kept = self._evaluator.agreed(self._write(best))
        finally:
            if not kept:
                self._memory.restore()
        return kept

    def _write(self, candidate: _Candidate) -> bool:
        """Write the jump in a way that autograd sees; whether all weights are finite."""
        with torch.no_grad():
            here = {name: local(parameter) for name, parameter in self._parameters.items()}
            for name, weights in here.items():
                weights.add_(candidate.displacement[name].to(weights.device))
            for tensor, value in candidate.adapted:
                tensor.copy_(value)
            return all(_is_finite(weights) for weights in here.values())

    def _adapt_unprobed(self, prediction: Prediction) -> _Candidate | None:
        displacement = self._displacements.of(prediction)
        if displacement is None or self._evaluator.on_jump is None:
            return None if displacement is None else _Candidate(prediction, displacement, [])
        try:
            self._memory.hide()
            self._translate(displacement)
            if not self._evaluator.adapt():
                return None
            return _Candidate(prediction, displacement, self._adapted(displacement))
        finally:
            self._memory.restore()

    def _translate(self, displacement: Mapping[str, Tensor]) -> None:
        """Add the displacement; where types differ the sum is made in the wider one and rounded once."""
        for name, parameter in self._parameters.items():
            weights = local(parameter).data
            weights.add_(displacement[name].to(weights.device))

    def _adapted(self, displacement: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Copies of what `on_jump` changed besides the translation; nothing where there is none."""
        if self._evaluator.on_jump is None:
            return []
        model = self._evaluator.model
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        found: list[tuple[Tensor, Tensor]] = []
        for tensor in [*model.parameters(), *model.buffers()]:
            expected = self.weights.copy_of(tensor)
            if expected is not None and id(tensor) in names:
                moved = displacement[names[id(tensor)]].to(expected.device)
                expected = expected.clone().add_(moved)
            weights = local(tensor)
            if expected is None or not _is_equal(weights, expected):
                found.append((weights, weights.detach().clone()))
        return found


def _is_equal(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


def _is_finite(weights: Tensor) -> bool:
    """Whether no value is NaN or infinite; makes nothing of the tensor's size."""
    if weights.numel() == 0:  # a shard may be
        return True
    low, high = torch.aminmax(weights)
    return bool(torch.isfinite(low) & torch.isfinite(high))
