"""Probes whose gradients are looked at, too: the same evaluation tells the loss and where it falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from koopcast.hook.memory import weights_of
from koopcast.hook.refining import Point
from koopcast.hook.trial import Evaluator, Trial
from koopcast.prediction import Prediction

__all__ = ["GradientEvaluator", "GradientTrial", "assign", "flat", "gradient_of_step", "shown"]


class GradientEvaluator(Evaluator):
    """Keeps the gradient of each loss, if it is wanted and the probe returns the loss as a tensor with its graph.

    Attributes:
        wanted: whether gradients are of any use at present; they cost a backward pass.
        gradient: of the last loss, 1-d; None where there is none.
    """

    wanted: bool
    gradient: Tensor | None
    parameters: Callable[[], Sequence[Tensor]]
    """The parameters that take part, in order."""

    def _number(self, value: Any) -> float:
        self.gradient = None
        if self.wanted and isinstance(value, Tensor) and value.requires_grad and value.numel() == 1:
            self.gradient = _gradient(value.reshape(()), self.parameters())
        return super()._number(value)


class GradientTrial(Trial):
    """An attempt that remembers points: where training stands, and where the best candidate landed.

    Attributes:
        now: where training stands, once `loss_now` was called; None where the probe gave no finite gradient.
        landed: where the best candidate so far landed, likewise.
        reach: length of the last displacement that was tried.
    """

    now: Point | None = None
    landed: Point | None = None
    reach: float = 0.0
    _evaluator: GradientEvaluator

    def loss_now(self) -> float:
        """The probe's loss of the current weights."""
        loss = super().loss_now()
        if self._evaluator.gradient is not None:  # else not even a copy of the weights is made
            self.now = self._point(flat(list(self._parameters.values())), loss)
        return loss

    def evaluate(self, prediction: Prediction) -> float:
        """The probe's loss after this jump."""
        loss = super().evaluate(prediction)
        best = self._best
        if self.now is not None and best is not None and best.prediction is prediction:
            moved = flat([best.displacement[name] for name in self._parameters]).to(self.now.weights)
            self.reach = float(torch.linalg.vector_norm(moved))
            if loss == self._best_loss:
                self.landed = self._point(self.now.weights + moved, loss)
        return loss

    def at(self, weights: Tensor) -> Point | None:
        """The point with these weights; None where loss or gradient are not finite or not to be had."""
        try:
            self._memory.hide()
            assign({name: parameter.data for name, parameter in self._parameters.items()}, weights)
            return self._point(weights, self._evaluator.loss())
        finally:
            self._memory.restore()

    def place(self, weights: Tensor) -> bool:
        """Move there for good, in a way that autograd sees. False: not finite, nothing happened."""
        if not bool(torch.isfinite(weights).all()):
            return False
        assign(self._parameters, weights)
        return True

    def _point(self, weights: Tensor, loss: float) -> Point | None:
        gradient, self._evaluator.gradient = self._evaluator.gradient, None
        if gradient is None or not math.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
            return None
        return Point(weights, loss, gradient)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them one after the other, 1-d, a copy; half precision in float32."""
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return torch.cat([tensor.detach().reshape(-1).to(wide) for tensor in tensors])


def assign(tensors: Mapping[str, Tensor], weights: Tensor) -> None:
    """Write weights, as `flat` has them, into these tensors."""
    parts = torch.split(weights, [tensor.numel() for tensor in tensors.values()])
    with torch.no_grad():
        for tensor, part in zip(tensors.values(), parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


@contextmanager
def shown(model: nn.Module, parameters: Mapping[str, Tensor], weights: Tensor) -> Iterator[None]:
    """Inside, the parameters have these weights; after it every bit of the model is as before."""
    before = weights_of(model)
    assign(parameters, weights)
    try:
        yield
    finally:
        before.restore()


def gradient_of_step(parameters: Sequence[Tensor]) -> Tensor | None:
    """The gradients that the last step was made with, as `flat` has them; None where no parameter has one."""
    if all(parameter.grad is None for parameter in parameters):
        return None
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    taking = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        found = torch.autograd.grad(loss, taking, allow_unused=True)
    except RuntimeError:  # the probe went backward itself, and the graph is gone
        return None
    by_id = {id(parameter): gradient for parameter, gradient in zip(taking, found, strict=True)}
    gradients = [by_id.get(id(parameter)) for parameter in parameters]
    return flat(
        [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
    )
