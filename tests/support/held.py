"""A trainer that holds its window: a path of weights, and one process of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import koopcast
from koopcast.gram import GramRow
from koopcast.window.held import Shard, TrainerWindow

SHAPES: dict[str, tuple[int, ...]] = {
    "fc1.weight": (20, 11),
    "fc1.bias": (20,),
    "fc2.weight": (7, 20),
    "fc2.bias": (7,),
    "scale": (),
}
SPECS = {name: koopcast.TensorSpec("float32", shape) for name, shape in SHAPES.items()}
STRIDE, SNAPSHOTS, WINDOW = 5, 10, 8
"""Biases and some nodes are shorter than the window."""
Weights = dict[str, npt.NDArray[np.float32]]


def weights(index: int) -> Weights:
    """A path with several modes, one of them alternating, and a little noise; float32."""
    random = np.random.default_rng(7)
    rates = np.array([0.99, 0.9, 0.7, -0.4])
    found: Weights = {}
    for name, shape in SHAPES.items():
        fixed, modes = random.standard_normal(shape), random.standard_normal((*shape, len(rates)))
        noise = np.random.default_rng((index, len(found))).standard_normal(shape)
        found[name] = np.asarray(fixed + modes @ rates**index + 1e-3 * noise, np.float32)
    return found


PATH = [weights(index) for index in range(SNAPSHOTS)]


def tensors(snapshot: Weights) -> dict[str, torch.Tensor]:
    """A copy as torch has it."""
    return {name: torch.from_numpy(np.array(array)) for name, array in snapshot.items()}


class Trainer:
    """One process of a trainer: its window, and its job at the service."""

    def __init__(
        self,
        client: koopcast.Client,
        name: str,
        operator: koopcast.Operator,
        shard: Shard | None = None,
        **options: Any,
    ) -> None:
        self.window = TrainerWindow(SPECS, operator, shard=shard)
        self.job = client.open_job(
            name, SPECS, stride=STRIDE, operator=operator, window_holder="trainer", **options
        )

    def row(self, step: int, snapshot: dict[str, torch.Tensor]) -> GramRow:
        self.window.write(snapshot)
        return self.window.publish(step)

    def push(self, step: int, snapshot: dict[str, torch.Tensor], **times: Any) -> Any:
        return self.job.push_gram_row(step, self.row(step, snapshot), **times)

    def predict(self, horizons: Sequence[float], **options: Any) -> list[koopcast.Prediction]:
        return [self.window.bind(p) for p in self.job.predict_coefficients(horizons, **options)]


def flat(prediction: koopcast.Prediction) -> npt.NDArray[np.float64]:
    """Its displacement, all tensors one after the other."""
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in prediction.displacement.values()])


def assert_same(found: Sequence[koopcast.Prediction], expected: Sequence[koopcast.Prediction]) -> None:
    """The same blocks move, by the same up to 1e-5 of the displacement's length."""
    assert [(p.steps, p.operator_index, p.base_step) for p in found] == [
        (p.steps, p.operator_index, p.base_step) for p in expected
    ]
    assert any(flat(p).any() for p in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.summary.moved == other.summary.moved
        assert np.linalg.norm(flat(one) - flat(other)) <= 1e-5 * np.linalg.norm(flat(other))
