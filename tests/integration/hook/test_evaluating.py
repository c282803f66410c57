"""Weights to evaluate: averages where training is noisy, the model's own elsewhere, and nothing of it in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopcast
from services import RunningService
from trainers import bits, data, loss_of, seed_all, settled, smooth_net, train, weights

BATCH = 8
SETTINGS: dict[str, Any] = {
    "every": 2, "operator": koopcast.Operator(window=4, rank=2), "horizons": [4, 8], "wait_seconds": 10.0,
}  # fmt: skip


class Noisy:
    """A training run on small batches, of which a probe sees one, with an average of its own beside it."""

    def __init__(self) -> None:
        seed_all()
        self.model = smooth_net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)
        self.generator = torch.Generator().manual_seed(3)
        self.inputs, targets = data(512)
        self.targets = targets + 0.5 * torch.randn(targets.shape, generator=self.generator)

    def loss(self, indices: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.model(self.inputs[indices]), self.targets[indices])

    def probe(self) -> Tensor:
        return self.loss(torch.arange(BATCH))

    def whole_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss(torch.arange(512)))

    def train(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.loss(torch.randint(512, (BATCH,), generator=self.generator)))
            self.optimizer.step()


def test_noisy_training_is_evaluated_by_its_average(service: RunningService, job_name: str) -> None:
    run, plain = Noisy(), Noisy()
    own, averaged = [], []
    with koopcast.attach(
        run.model, run.optimizer, service.target, job=job_name, probe=run.probe, mode="observe", **SETTINGS
    ) as ahead:
        for _ in range(20):
            run.train(20)
            plain.train(20)
            before = bits(run.model, run.optimizer)
            own.append(run.whole_loss())
            with ahead.evaluating():
                averaged.append(run.whole_loss())
            assert bits(run.model, run.optimizer) == before
    assert bits(run.model, run.optimizer) == bits(plain.model, plain.optimizer)
    assert own[0] == averaged[0]  # not yet known, or seen for too few steps
    late = slice(5, None)
    assert all(one != other for one, other in zip(own[late], averaged[late], strict=True))
    assert sum(averaged[late]) < 0.95 * sum(own[late])


def test_an_exception_leaves_the_weights_of_training(service: RunningService, job_name: str) -> None:
    run = Noisy()
    with koopcast.attach(
        run.model, run.optimizer, service.target, job=job_name, probe=run.probe, mode="observe", **SETTINGS
    ) as ahead:
        run.train(100)
        before = bits(run.model)

        def evaluate() -> None:
            with ahead.evaluating():
                assert bits(run.model) != before
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate()
        assert bits(run.model) == before


def test_deterministic_training_is_evaluated_as_it_is(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=lambda: loss_of(model), **SETTINGS
    ) as ahead:
        train(model, optimizer, 60)
        settled(ahead, 1)
        before = weights(model)
        with ahead.evaluating():
            assert torch.equal(weights(model), before)
        assert not ahead._average._averages


def test_off_and_closed_it_is_the_models_own(service: RunningService, job_name: str) -> None:
    run = Noisy()
    with koopcast.attach(run.model, run.optimizer, mode="off") as ahead:
        run.train(60)
        before = weights(run.model)
        with ahead.evaluating():
            assert torch.equal(weights(run.model), before)
    with koopcast.attach(
        run.model, run.optimizer, service.target, job=job_name, probe=run.probe, mode="observe", **SETTINGS
    ) as ahead:
        run.train(100)
        with ahead.evaluating():
            assert not torch.equal(weights(run.model), before)
            ahead.close()
    before = weights(run.model)
    with ahead.evaluating():
        assert torch.equal(weights(run.model), before)
