"""L-BFGS of PyTorch in place of the optimizer: what someone with a deterministic loss could use instead of all of this.

Liu & Nocedal, "On the limited memory BFGS method for large scale optimization" (1989), with the line search of strong
Wolfe conditions, on the probe's loss. After each step of the optimizer it goes on from where it was itself: the
optimizer's own steps, one for each twenty evaluations, are counted and of no use.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from acceleration.methods.running import Beside, Start

__all__ = ["lbfgs"]

_EVALUATIONS: Final = 20
"""At a time."""


class _InPlace(Beside):
    def __init__(self, start: Start) -> None:
        self._problem = start.problem
        self._parameters = [
            parameter for parameter in start.problem.model.parameters() if parameter.requires_grad
        ]
        self._optimizer = torch.optim.LBFGS(
            self._parameters,
            lr=1.0,
            max_iter=_EVALUATIONS,
            max_eval=_EVALUATIONS,
            history_size=10,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        self._reached = [parameter.detach().clone() for parameter in self._parameters]
        self._spent = 0.0

    def after_step(self) -> float:
        self._spent = 0.0
        with torch.no_grad():
            for parameter, reached in zip(self._parameters, self._reached, strict=True):
                parameter.copy_(reached)
        self._optimizer.step(self._evaluate)  # type: ignore[no-untyped-call]  # torch's
        self._reached = [parameter.detach().clone() for parameter in self._parameters]
        return self._spent

    def _evaluate(self) -> float:
        self._optimizer.zero_grad()
        loss: Tensor = self._problem.probe()
        torch.autograd.backward(loss)
        self._spent += self._problem.probe_cost_steps
        return float(loss.detach())


def lbfgs(start: Start) -> _InPlace:
    """L-BFGS from the first weights on."""
    return _InPlace(start)
