"""A trainer is never harmed: with no service, a lost one, a paused one, or nothing but refusals, it trains as before."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopcast
from services import RunningService, free_port, running_service
from trainers import NoisyNet, bits, data, loss_of, random_numbers, seed_all, smooth_net, steps, train

SMALL = koopcast.Operator(window=4, rank=2)


def trained(target: str | None, *, count: int = 60, **settings: Any) -> tuple[Any, ...]:
    """Everything that training with these settings leaves; plain training where `settings` are empty."""
    seed_all()
    model = NoisyNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rate = torch.optim.lr_scheduler.StepLR(optimizer, 20)
    ahead = koopcast.attach(model, optimizer, target, operator=SMALL, **settings) if settings else None
    try:
        for _ in steps(model, optimizer, count):
            rate.step()
    finally:
        if ahead is not None:
            ahead.close()
    gradients = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    stats = ahead.stats() if ahead is not None else None
    return bits(model, optimizer), gradients, random_numbers(), rate.state_dict(), stats


def noisy_refusal(model: nn.Module) -> Tensor:
    """Disturbs all that a probe can, and never finds a lower loss."""
    random_numbers()
    torch.autograd.backward(loss_of(model))
    return torch.tensor(float(time.monotonic()))


def test_without_a_service_training_is_bit_identical(caplog: pytest.LogCaptureFixture) -> None:
    plain = trained(None)
    with caplog.at_level(logging.WARNING, logger="koopcast"):
        alone = trained(f"127.0.0.1:{free_port()}", probe=lambda: 0.0, every=2, average=True)
    assert alone[:-1] == plain[:-1]
    assert [record.name for record in caplog.records] == ["koopcast"]
    stats = alone[-1]
    assert (stats.steps, stats.snapshots_pushed, stats.probe_evaluations) == (60, 0, 0)
    assert stats.snapshots_dropped == 30
    assert stats.service_errors >= 1
    assert stats.seconds_blocked == 0
    assert "service" in stats.last_decision


@pytest.mark.parametrize("average", [False, True])
def test_when_every_jump_is_refused_training_is_bit_identical(
    service: RunningService, *, average: bool
) -> None:
    seen: list[nn.Module] = []

    def on_jump(model: nn.Module) -> None:
        seen.append(model)
        model(data()[0])

    def probe() -> Tensor:
        model = seen[-1] if seen else None
        return noisy_refusal(model) if model is not None else torch.tensor(0.0)

    plain = trained(None)
    refused = trained(
        service.target,
        probe=probe,
        on_jump=on_jump,
        every=2,
        average=average,
        horizons=[4, 8],
        wait_seconds=10.0,
    )
    assert refused[:-1] == plain[:-1]
    stats = refused[-1]
    assert stats.jumps_proposed == stats.jumps_rejected >= 3
    assert stats.jumps_accepted == 0
    assert stats.probe_evaluations >= 2 * stats.jumps_proposed
    assert stats.on_jump_evaluations == len(seen) >= stats.jumps_proposed
    assert stats.service_errors == stats.snapshots_dropped == 0


def test_a_probe_that_raises_is_a_refusal_and_one_warning(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    def probe() -> float:
        raise RuntimeError("no loss today")

    with caplog.at_level(logging.WARNING, logger="koopcast"):
        raised = trained(service.target, probe=probe, every=2, wait_seconds=10.0)
    assert raised[:-1] == trained(None)[:-1]
    assert len(caplog.records) == 1
    assert "no loss today" in caplog.text
    assert raised[-1].jumps_rejected >= 3
    assert raised[-1].jumps_accepted == 0


def test_a_killed_service_costs_one_warning_and_the_job_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with running_service("--http", "off") as service, caplog.at_level(logging.WARNING, logger="koopcast"):
        model = smooth_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        plain_model = smooth_net()
        plain = torch.optim.SGD(plain_model.parameters(), lr=0.05)
        with koopcast.attach(
            model, optimizer, service.target, job="killed", operator=SMALL, every=5, wait_seconds=10.0,
            probe=lambda: loss_of(model),
        ) as ahead:  # fmt: skip
            train(model, optimizer, 60)
            before = ahead.stats()
            assert before.jumps_accepted >= 1
            service.kill()
            plain_model.load_state_dict(model.state_dict())
            plain.load_state_dict(optimizer.state_dict())
            train(model, optimizer, 200)
            train(plain_model, plain, 200)
            assert bits(model) == bits(plain_model)
            lost = ahead.stats()
            assert not lost.connected
            assert lost.jumps_proposed == before.jumps_proposed
            assert len(caplog.records) == 1

            service.restart()
            returned = time.monotonic()
            while not ahead.stats().connected and time.monotonic() - returned < 30:
                train(model, optimizer, 1)
                time.sleep(0.01)
            assert time.monotonic() - returned < 30
            train(model, optimizer, 100)
            again = ahead.stats()
            with koopcast.connect(service.target) as client:
                assert client.job_status("killed").snapshots_held > 0
        assert again.jumps_proposed > before.jumps_proposed
        assert again.snapshots_pushed > before.snapshots_pushed
        assert again.bytes_sent > before.bytes_sent
        assert len(caplog.records) == 1


def test_a_paused_service_holds_the_loop_no_longer_than_wait_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wait_seconds = 0.2
    with running_service("--http", "off") as service, caplog.at_level(logging.WARNING, logger="koopcast"):
        model = smooth_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with koopcast.attach(
            model, optimizer, service.target, job="paused", operator=SMALL, every=5, wait_seconds=wait_seconds,
            probe=lambda: loss_of(model),
        ) as ahead:  # fmt: skip
            train(model, optimizer, 30)
            service.pause()
            try:
                longest, attempts = 0.0, 0
                last = ahead.stats()
                deadline = time.monotonic() + 9.0
                while time.monotonic() < deadline and last.connected:
                    for _ in steps(model, optimizer, 20):  # one attempt at most: window 4, stride 5
                        now = ahead.stats()
                        longest = max(longest, now.seconds_in_hook - last.seconds_in_hook)
                        last = now
                    attempts += 1
                    time.sleep(0.05)
                blocked = last.seconds_blocked
            finally:
                service.resume()
            assert longest < wait_seconds + 0.3  # the machine is shared
            assert blocked < (attempts + 2) * wait_seconds + 0.3
            assert not last.connected  # the circuit opened
            resumed = time.monotonic()
            while not ahead.stats().connected and time.monotonic() - resumed < 30:
                train(model, optimizer, 1)
                time.sleep(0.01)
            assert ahead.stats().connected  # under its old lease, which is still alive
        assert len(caplog.records) == 1


def test_weights_that_are_not_finite_are_the_trainers_own_affair(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with (
        caplog.at_level(logging.WARNING, logger="koopcast"),
        koopcast.attach(model, optimizer, service.target, operator=SMALL, every=2) as ahead,
    ):
        train(model, optimizer, 4)
        with torch.no_grad():
            model.get_parameter("0.bias")[0] = torch.nan
        train(model, optimizer, 30)
        time.sleep(0.2)
        assert ahead.stats().jumps_accepted == 0
    assert len(caplog.records) == 1
    assert "nan" in caplog.text
