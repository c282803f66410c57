"""What a task is: for every seed a network, its losses, and what counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

__all__ = ["Kind", "Problem", "Task"]

Kind = Literal["deterministic", "stochastic"]
"""Whether every step sees the whole training set, or a batch of it."""


@dataclass
class Problem:
    """One seed's network and its losses. All of it on the CPU, in float32.

    Attributes:
        model: the network, in training mode.
        batch_loss: training loss, with its graph, of the batch of optimizer step 0, 1, …; may be asked in any order.
            Deterministic tasks give the loss of the whole set whatever the step.
        target_loss: what counts, of the model as it is now: a validation or residual loss. Leaves gradients, modes,
            buffers and random states alone.
        probe: training loss, with its graph, of a batch that is always the same; deterministic tasks: of the whole
            set. Leaves buffers alone.
        probe_cost_steps: samples of the probe over samples of a batch; 1 where the task is deterministic.
        adapt: recomputes BatchNorm statistics after the weights were moved, for `koopcast.attach(on_jump=...)`; None
            where there are none.
        adapt_cost_steps: samples that `adapt` sees over samples of a batch.
    """

    model: nn.Module
    batch_loss: Callable[[int], Tensor]
    target_loss: Callable[[], float]
    probe: Callable[[], Tensor]
    probe_cost_steps: float = 1.0
    adapt: Callable[[nn.Module], None] | None = None
    adapt_cost_steps: float = 0.0


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    Attributes:
        name: as on the command line, "hamiltonian-oscillator".
        title: one line for tables.
        kind: deterministic or stochastic.
        budget_steps: optimizer steps of a plain run; schedules end there.
        target: what `Problem.target_loss` is, in words: "validation loss", "residual loss".
        make: gives the seed's problem. The seed decides the first weights and the order of the batches, never the data.
            Raises `koopcast_server.demo.DemoError` where the data are missing; the message says what to install.
    """

    name: str
    title: str
    kind: Kind
    budget_steps: int
    target: str
    make: Callable[[int], Problem]
