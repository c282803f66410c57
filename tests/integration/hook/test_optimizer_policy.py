"""What becomes of the optimizer's state at a jump, through a real service."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import koopcast
from services import RunningService
from trainers import loss_of, smooth_net

EVERY = 5
WINDOW = 4
JUMP = WINDOW * EVERY
OPERATOR = koopcast.Operator(window=WINDOW, rank=2)


class Trainer:
    """Adam; the probe says 4 before the jump, 1 after it, and `later` from the next step on."""

    def __init__(self, later: float = 1.0) -> None:
        self.model = smooth_net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.later = later
        self.steps = 0
        self.probed_at: list[int] = []

    def train(self, count: int) -> None:
        for _ in range(count):
            self.steps += 1
            self.optimizer.zero_grad()
            torch.autograd.backward(loss_of(self.model))
            self.optimizer.step()

    def probe(self) -> float:
        self.probed_at.append(self.steps)
        if self.steps > JUMP:
            return self.later
        return 4.0 if self.probed_at.count(JUMP) <= 1 else 1.0

    def state(self) -> dict[Any, Any]:
        states: dict[Any, Any] = copy.deepcopy(self.optimizer.state_dict()["state"])
        return states


def attach(run: Trainer, service: RunningService, policy: Any, **settings: Any) -> koopcast.Ahead:
    return koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.probe, every=EVERY, operator=OPERATOR, wait_seconds=10.0,
        optimizer_state=policy, horizons=[20], **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("policy", "first", "second"), [("keep", 1.0, 1.0), ("rescale", 0.5, 0.25)])
def test_state_follows_the_jump(service: RunningService, policy: str, first: float, second: float) -> None:
    run, plain = Trainer(), Trainer()
    plain.train(JUMP)
    with attach(run, service, policy) as ahead:
        run.train(JUMP)
        assert ahead.stats().jumps_accepted == 1
    for index, expected in plain.state().items():
        ours = run.state()[index]
        torch.testing.assert_close(ours["exp_avg"], first * expected["exp_avg"], rtol=0, atol=0)
        torch.testing.assert_close(ours["exp_avg_sq"], second * expected["exp_avg_sq"], rtol=0, atol=0)
        assert ours["step"] == expected["step"]


def test_reset_begins_anew(service: RunningService) -> None:
    run = Trainer()
    with attach(run, service, "reset") as ahead:
        run.train(JUMP - 1)
        assert len(run.state()) == 4
        run.train(1)
        assert ahead.stats().jumps_accepted == 1
        assert not run.state()
        run.train(1)
        assert {float(entry["step"]) for entry in run.state().values()} == {1.0}


@pytest.mark.parametrize("policy", ["reset", "rescale"])
def test_undoing_a_jump_brings_the_state_back(service: RunningService, policy: str) -> None:
    run, plain = Trainer(later=99.0), Trainer()
    plain.train(JUMP)
    with attach(run, service, policy) as ahead:
        run.train(JUMP + EVERY)
        assert ahead.stats().jumps_undone == 1
    for index, expected in plain.state().items():
        assert all(torch.equal(run.state()[index][name], value) for name, value in expected.items())


@pytest.mark.parametrize("policy", ["reset", "rescale"])
def test_a_refused_jump_leaves_the_state_alone(service: RunningService, policy: str) -> None:
    run, plain = Trainer(), Trainer()
    plain.train(JUMP)
    with attach(run, service, policy, mode="observe"):
        run.train(JUMP)
    for index, expected in plain.state().items():
        assert all(torch.equal(run.state()[index][name], value) for name, value in expected.items())
