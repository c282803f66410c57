"""Tries predicted displacements on the live model, and leaves no trace of those that are not accepted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from koopcast.hook.memory import TrainerMemory
from koopcast.hook.stats import Counters
from koopcast.prediction import Prediction

__all__ = ["OnJump", "Probe", "Trial"]

Probe = Callable[[], "float | Tensor"]
"""The loss of the model as it is; runs on the training thread with gradients enabled."""
OnJump = Callable[[nn.Module], object]
"""What a jump needs besides new weights, e.g. recomputing BatchNorm statistics."""

_LOG = logging.getLogger("koopcast")


class Evaluator:
    """Calls the user's probe and `on_jump`; one that raises is reported once and counts as a loss of NaN."""

    def __init__(
        self, model: nn.Module, probe: Probe | None, on_jump: OnJump | None, counters: Counters
    ) -> None:
        """Call these for this model."""
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
                value = self.probe()
                return float(value.detach()) if isinstance(value, Tensor) else float(value)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer from the user's callback
            self._report("the probe", error)
            return math.nan

    def _report(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning("koopcast: %s raised %r; the jump is refused, training goes on", what, error)


class Trial:
    """One attempt on the model. Remembers the trainer when made; every evaluation ends with it restored."""

    def __init__(
        self, evaluator: Evaluator, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Remember everything an evaluation may touch."""
        self._evaluator = evaluator
        self._parameters = parameters
        self._memory = TrainerMemory(evaluator.model, optimizer)
        self._best_loss = math.inf
        self._best: tuple[Prediction, list[tuple[Tensor, Tensor]]] | None = None

    def loss_now(self) -> float:
        """The probe's loss of the current weights."""
        try:
            self._memory.hide_gradients()
            return self._evaluator.loss()
        finally:
            self._memory.restore()

    def evaluate(self, prediction: Prediction) -> float:
        """The probe's loss after this jump; NaN where a callback raised."""
        try:
            self._memory.hide_gradients()
            self._translate(prediction)
            if not self._evaluator.adapt():
                return math.nan
            adapted = self._adapted()
            loss = self._evaluator.loss()
            if loss < self._best_loss:
                self._best_loss, self._best = loss, (prediction, adapted)
            return loss
        finally:
            self._memory.restore()

    def keep(self, prediction: Prediction) -> bool:
        """Make the jump for good: parameters and buffers as `on_jump` left them. False: not finite, undone."""
        probed = self._best is not None and self._best[0] is prediction
        adapted = self._best[1] if probed and self._best else self._adapt_unprobed(prediction)
        if adapted is None:
            return False
        kept = False
        try:
            kept = self._write(prediction, adapted)
        finally:
            if not kept:
                self._memory.restore()
        return kept

    def _write(self, prediction: Prediction, adapted: list[tuple[Tensor, Tensor]]) -> bool:
        """Write the jump in a way that autograd sees; whether all weights are finite."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._translated(name, parameter, prediction))
            for tensor, value in adapted:
                tensor.copy_(value)
            return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters.values())

    def _adapt_unprobed(self, prediction: Prediction) -> list[tuple[Tensor, Tensor]] | None:
        try:
            self._memory.hide_gradients()
            self._translate(prediction)
            return self._adapted() if self._evaluator.adapt() else None
        finally:
            self._memory.restore()

    def _translate(self, prediction: Prediction) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._translated(name, parameter, prediction))

    def _translated(self, name: str, parameter: nn.Parameter, prediction: Prediction) -> Tensor:
        """The remembered weights plus the displacement, summed in the wider of the two types."""
        weights = self._memory.copy_of(parameter)
        displacement = torch.from_numpy(prediction.displacement[name]).to(weights.device)
        return weights.to(torch.promote_types(weights.dtype, displacement.dtype)) + displacement

    def _adapted(self) -> list[tuple[Tensor, Tensor]]:
        """Copies of what `on_jump` may have changed; nothing where there is none."""
        if self._evaluator.on_jump is None:
            return []
        model = self._evaluator.model
        tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        return [(tensor, tensor.detach().clone()) for tensor in tensors]
