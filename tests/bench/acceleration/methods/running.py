"""What a method is given, and what it does beside a training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from koopcast_server.demo.tasks.task import Problem

__all__ = ["Beside", "Method", "Running", "Start"]


@dataclass(frozen=True)
class Start:
    """What a method is given before the first step.

    Attributes:
        problem: network and losses.
        optimizer: trains all parameters of the network that require gradients.
        scheduler: steps once after every optimizer step.
        budget_steps: counted steps of the run.
        service: address of a running koopcast service; None: one in this process.
    """

    problem: Problem
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    budget_steps: int
    service: str | None = None


class Running(Protocol):
    """A method at work."""

    def after_step(self) -> float:
        """To be called once the optimizer and the scheduler have stepped.

        Returns:
            counted steps spent since the last call, beyond the optimizer's step itself.
        """

    def evaluated(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights that the method would hand out now; after it, those it had before."""

    def facts(self) -> dict[str, Any]:
        """What is worth keeping, as JSON can hold it.

        Of methods that jump, under ``"jumps"``: lists of counted step, 1 if the jump stayed, else 0, and how far it
        reached in optimizer steps.
        """

    def close(self) -> None:
        """The run has ended."""


Method = Callable[[Start], Running]


class Beside:
    """A method that spends nothing, hands out what is trained, and has nothing to tell. The others build on it."""

    def after_step(self) -> float:
        """Do nothing."""
        return 0.0

    def evaluated(self) -> AbstractContextManager[None]:
        """Leave the weights as they are."""
        return nullcontext()

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is open."""
