"""Jumps that a probe accepted and that go wrong afterwards are undone, through a real service."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import koopcast
from services import RunningService
from trainers import bits, loss_of, smooth_net

EVERY = 5
WINDOW = 4
JUMP = WINDOW * EVERY
OPERATOR = koopcast.Operator(window=WINDOW, rank=2)


class Trainer:
    """SGD with momentum and a schedule; `probe` tells what the test wants it to."""

    def __init__(self, loss_after: float) -> None:
        self.model = smooth_net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.5)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, 100)
        self.loss_after = loss_after
        self.steps = 0
        self.probes_at: list[int] = []

    def step(self) -> None:
        self.steps += 1
        self.optimizer.zero_grad()
        loss_of(self.model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.schedule.step()

    def probe(self) -> float:
        """1 before the jump, 0.5 after it, `loss_after` from then on; a jump is proposed at step JUMP."""
        self.probes_at.append(self.steps)
        if self.steps > JUMP:
            return self.loss_after
        return 1.0 if self.probes_at.count(JUMP) <= 1 else 0.5


def attach(run: Trainer, service: RunningService, **settings: Any) -> koopcast.Ahead:
    return koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.probe, every=EVERY, operator=OPERATOR,
        wait_seconds=10.0, **settings,
    )  # fmt: skip


def everything(trainer: Trainer) -> tuple[dict[str, bytes], Any]:
    momentum = [state["momentum_buffer"].clone() for state in trainer.optimizer.state.values()]
    return bits(trainer.model), momentum


@pytest.mark.parametrize(
    ("loss_after", "undone"), [(2.0, True), (float("nan"), True), (0.6, False), (1.05, False)]
)
def test_a_jump_is_undone_if_training_went_wrong_from_there(
    service: RunningService, loss_after: float, *, undone: bool
) -> None:
    run, plain = Trainer(loss_after), Trainer(loss_after)
    for _ in range(JUMP):
        plain.step()
    before_jump = everything(plain)
    with attach(run, service) as ahead:
        for _ in range(JUMP):
            run.step()
        assert ahead.stats().jumps_accepted == 1
        assert bits(run.model) != before_jump[0]
        for _ in range(EVERY):
            run.step()
        stats = ahead.stats()
        assert run.probes_at[-1] == JUMP + EVERY
        (event,) = stats.log
        assert (event.step, event.undone, event.accepted) == (JUMP, undone, not undone)
        assert (stats.jumps_undone, stats.jumps_accepted, stats.jumps_rejected) == (
            undone,
            not undone,
            undone,
        )
        if undone:
            assert bits(run.model) == before_jump[0]
            for ours, theirs in zip(everything(run)[1], before_jump[1], strict=True):
                assert torch.equal(ours, theirs)
            assert "undone" in stats.last_decision
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 0.9 * (JUMP + EVERY) / 100))
        status = wait_for_outcome(service, ahead.job)
        assert (status.jumps_accepted, status.jumps_rejected) == (not undone, undone)
        for _ in range(JUMP):
            run.step()
        assert ahead.stats().jumps_proposed == 2  # and a new window was filled


def wait_for_outcome(service: RunningService, job: str) -> koopcast.JobStatus:
    """The job's status once the outcome arrived, which travels in the background."""
    with koopcast.connect(service.target) as client:
        for _ in range(200):
            status = client.job_status(job)
            if status.jumps_accepted + status.jumps_rejected:
                return status
    raise AssertionError("no outcome was reported")


def test_a_jump_that_training_ends_after_stays_and_is_reported(service: RunningService) -> None:
    run = Trainer(2.0)
    with koopcast.connect(service.target) as client:
        ahead = attach(run, service, job="ends-after-jump")
        for _ in range(JUMP):
            run.step()
        landed = bits(run.model)
        ahead.close(keep=True)
        assert bits(run.model) == landed
        assert client.job_status("ends-after-jump").jumps_accepted == 1


def test_weights_loaded_meanwhile_are_not_undone(service: RunningService) -> None:
    run = Trainer(2.0)
    loaded = copy.deepcopy(run.model.state_dict())
    with attach(run, service) as ahead:
        for _ in range(JUMP):
            run.step()
        assert ahead.stats().jumps_accepted == 1
        run.model.load_state_dict(loaded)
        ahead.start_segment()
        fresh: nn.Module = run.model
        probes = len(run.probes_at)
        for _ in range(EVERY):
            run.step()
        assert len(run.probes_at) == probes
        assert ahead.stats().jumps_undone == 0
        assert fresh is run.model


def test_watching_can_be_left_out(service: RunningService) -> None:
    run = Trainer(2.0)
    with attach(run, service, watch=False) as ahead:
        for _ in range(JUMP + EVERY + 1):
            run.step()
        assert ahead.stats().jumps_accepted == 1
        assert run.probes_at[-1] == JUMP
