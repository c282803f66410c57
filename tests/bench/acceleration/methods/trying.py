"""Trying other weights on the live network, counting what that costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acceleration.methods.running import Start
from acceleration.methods.weights import Tensors

__all__ = ["Landing", "Tester"]


@dataclass(frozen=True)
class Landing:
    """Where a jump would lead.

    Attributes:
        loss: the probe's, there.
        tensors: all parameters and buffers, there.
    """

    loss: float
    tensors: list[Tensor]


class Tester:
    """Asks the task's probe, and leaves no trace but the count.

    Attributes:
        probe_evaluations: calls of the probe.
        adaptations: times that BatchNorm's statistics were computed anew.
    """

    def __init__(self, start: Start) -> None:
        """Ask the probe of this run."""
        self.probe_evaluations = 0
        self.adaptations = 0
        self._problem = start.problem
        self._optimizer = start.optimizer
        self._trained = Tensors.trained(start.problem.model)
        self._whole = Tensors.whole(start.problem.model)

    @property
    def counted(self) -> float:
        """Steps that all evaluations so far cost."""
        return (
            self.probe_evaluations * self._problem.probe_cost_steps
            + self.adaptations * self._problem.adapt_cost_steps
        )

    def loss(self) -> float:
        """The probe's loss of the weights as they are."""
        return self.land(None).loss

    def land(self, displacement: Tensor | None) -> Landing:
        """What the probe says after the trained weights moved by `displacement` (n), statistics computed anew."""
        held, random_state = self._whole.copies(), torch.get_rng_state()
        try:
            if displacement is not None:
                self.move(displacement)
            there = self._whole.copies()
            self.probe_evaluations += 1
            return Landing(float(self._problem.probe().detach()), there)
        finally:
            self._whole.write(held)
            torch.set_rng_state(random_state)

    def move(self, displacement: Tensor) -> None:
        """Add `displacement` (n) to the trained weights, and compute BatchNorm's statistics anew where there are any."""
        for tensor, moved in zip(self._trained.live, self._trained.pieces(displacement), strict=True):
            tensor.add_(moved)
        self.adapt()

    def adapt(self) -> None:
        """Compute BatchNorm's statistics anew, where the task has any."""
        if self._problem.adapt is not None:
            self.adaptations += 1
            self._problem.adapt(self._problem.model)

    def stay(self, landing: Landing) -> None:
        """Make a jump for good."""
        self._whole.write(landing.tensors)

    def departure(self) -> tuple[list[Tensor], Any]:
        """Parameters, buffers and the optimizer's state of now, for `go_back`."""
        return self._whole.copies(), copy.deepcopy(self._optimizer.state_dict()["state"])

    def go_back(self, departure: tuple[list[Tensor], Any]) -> None:
        """Put back all but the optimizer's settings: the learning rate goes on."""
        tensors, state = departure
        self._whole.write(tensors)
        settings = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": settings})
