"""The logarithm of a diamond's price from its measures and grades; full batch, or minibatches of 64."""

from __future__ import annotations

from functools import cache
from typing import Final

from torch import Tensor, nn

from koopcast_server.demo.tasks.batches import Batches, drawn, multilayer_perceptron, watched
from koopcast_server.demo.tasks.data import load_diamonds
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["FULL", "MINIBATCH"]

_WIDTHS: Final = (9, 32, 32, 1)
_FULL_ROWS: Final = 4096
_MINIBATCH_ROWS: Final = 40_000
_VALIDATION_ROWS: Final = 2048
_BATCH: Final = 64
_PROBE_BATCHES: Final = 4


@cache
def _rows() -> tuple[Tensor, Tensor]:
    return load_diamonds()


def _loss(model: nn.Module, inputs: Tensor, prices: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(inputs).squeeze(-1), prices)


def _full(seed: int) -> Problem:
    inputs, prices = _rows()
    training = inputs[:_FULL_ROWS], prices[:_FULL_ROWS]
    validation = inputs[-_VALIDATION_ROWS:], prices[-_VALIDATION_ROWS:]
    model = drawn(lambda: multilayer_perceptron(_WIDTHS, nn.Tanh), seed)

    def target_loss() -> float:
        with watched(model):
            return float(_loss(model, *validation))

    return Problem(
        model,
        batch_loss=lambda _: _loss(model, *training),
        target_loss=target_loss,
        probe=lambda: _loss(model, *training),
    )


def _minibatch(seed: int) -> Problem:
    inputs, prices = _rows()
    validation = inputs[-_VALIDATION_ROWS:], prices[-_VALIDATION_ROWS:]
    probe_rows = slice(_MINIBATCH_ROWS - _PROBE_BATCHES * _BATCH, _MINIBATCH_ROWS)
    model = drawn(lambda: multilayer_perceptron(_WIDTHS, nn.Tanh), seed)
    batches = Batches(_MINIBATCH_ROWS, _BATCH, seed)

    def batch_loss(step: int) -> Tensor:
        rows = batches.indices(step)
        return _loss(model, inputs[rows], prices[rows])

    def target_loss() -> float:
        with watched(model):
            return float(_loss(model, *validation))

    return Problem(
        model,
        batch_loss=batch_loss,
        target_loss=target_loss,
        probe=lambda: _loss(model, inputs[probe_rows], prices[probe_rows]),
        probe_cost_steps=_PROBE_BATCHES,
    )


FULL: Final = Task(
    name="regression-full",
    title="diamond prices, MLP 9-32-32-1, full batch of 4,096",
    kind="deterministic",
    budget_steps=1200,
    target="validation loss",
    make=_full,
)
MINIBATCH: Final = Task(
    name="regression-minibatch",
    title="diamond prices, MLP 9-32-32-1, batches of 64 from 40,000",
    kind="stochastic",
    budget_steps=2000,
    target="validation loss",
    make=_minibatch,
)
