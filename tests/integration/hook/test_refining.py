"""Jumps that are refined, through a real service: where that is done, and what it gains."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopcast
from refined import EVERY, JUMP, SETTINGS, WINDOW, advance, attach, refined
from services import RunningService
from trainers import (
    LinearTraining,
    bits,
    data,
    loss_of,
    random_numbers,
    seed_all,
    settled,
    smooth_net,
    train,
    weights,
)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_deterministic_training_needs_fewer_steps(service: RunningService, kind: str) -> None:
    budget = 400

    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = smooth_net()
        if kind == "adam":
            return model, torch.optim.Adam(model.parameters(), lr=3e-3)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    plain, optimizer = begun()
    train(plain, optimizer, budget)
    model, optimizer = begun()
    with koopcast.attach(model, optimizer, service.target, probe=lambda: loss_of(model), every=5) as ahead:
        stats = ahead.stats()
        while stats.steps + stats.probe_evaluations < budget:
            train(model, optimizer, 1)
            stats = ahead.stats()
    assert stats.steps + stats.probe_evaluations < 1.3 * budget  # the last attempt may end beyond
    assert any(refined(stats))
    assert stats.gradient_agreement == pytest.approx(1.0, abs=1e-4)
    assert loss_of(model).item() < 0.1 * loss_of(plain).item()


def test_training_has_a_step_while_a_jump_is_refined(service: RunningService) -> None:
    """Few evaluations a step; one jump in the end, looked back on after its last part; in between the best is handed out."""
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    calls = 0

    def probe() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model)

    with koopcast.attach(model, optimizer, service.target, probe=probe, refine=90, **SETTINGS) as ahead:
        train(model, optimizer, JUMP - 1)
        spent, losses = list[int](), list[float]()
        while not spent or spent[-1]:
            before = calls
            train(model, optimizer, 1)
            spent.append(calls - before)
            with ahead.evaluating():
                losses.append(loss_of(model).item())
            if spent[-1]:
                assert losses[-1] == loss_of(model).item()
        (event,) = ahead.stats().log
    assert event.step == JUMP
    assert event.accepted
    assert max(spent) <= 20 + 4 + 3
    assert event.probe_evaluations == sum(spent) > 60
    assert losses == sorted(losses, reverse=True)
    assert event.loss_after == pytest.approx(losses[-1], rel=1e-6)


class Rising:
    """A probe that says more each time, with the gradient of a loss: what it is asked about is never better."""

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        self.loss = loss
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        loss = self.loss()
        return loss - loss.detach() + self.calls


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_refused_refinement_leaves_training_bit_identical(service: RunningService, kind: str) -> None:
    found: list[tuple[Any, ...]] = []
    for mode in ("off", "auto"):
        seed_all()
        model = smooth_net()
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        if kind == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        probe = Rising(lambda model=model: loss_of(model))  # type: ignore[misc]  # of the default
        with koopcast.attach(
            model,
            optimizer,
            service.target,
            probe=probe,
            mode=mode,
            **SETTINGS,
        ) as ahead:
            train(model, optimizer, 4 * JUMP)
            stats = ahead.stats()
        found.append((bits(model, optimizer), random_numbers(), stats))
    assert found[0][:2] == found[1][:2]
    stats = found[1][2]
    assert stats.gradient_agreement == pytest.approx(1.0, abs=1e-4)
    assert stats.jumps_accepted == 0
    assert stats.jumps_rejected == 3
    # Besides the weights as they are and the candidate, refining tried some steps, the first time at any rate: later ones
    # begin where it was told of a lower loss.
    assert stats.log[0].probe_evaluations > 3


def test_noisy_training_is_never_refined_and_goes_quiet(service: RunningService) -> None:
    inputs, targets = data(512)
    steps, batch = 1200, 8
    found: list[tuple[Any, ...]] = []
    for mode in ("off", "auto"):
        seed_all()
        model = smooth_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(3)

        def loss(indices: Tensor, model: nn.Module = model) -> Tensor:
            return nn.functional.mse_loss(model(inputs[indices]), targets[indices])

        probe = Rising(lambda loss=loss: loss(torch.arange(64)))  # type: ignore[misc]  # likewise
        with koopcast.attach(
            model,
            optimizer,
            service.target,
            probe=probe,
            mode=mode,
            **SETTINGS,
        ) as ahead:
            for _ in range(steps):
                optimizer.zero_grad()
                torch.autograd.backward(loss(torch.randint(512, (batch,), generator=generator)))
                optimizer.step()
            stats = ahead.stats()
        found.append((bits(model, optimizer), random_numbers(), stats))
    assert found[0][:2] == found[1][:2]
    stats = found[1][2]
    assert stats.gradient_agreement is not None
    assert stats.gradient_agreement < 0.99
    assert not any(refined(stats))
    assert stats.jumps_accepted == 0
    assert stats.probe_evaluations < 0.02 * steps
    assert stats.snapshots_pushed < 0.2 * steps / EVERY


def test_dropout_is_noise(service: RunningService) -> None:
    """Though the probe, asked where a step begins, would draw the random numbers of that step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with koopcast.attach(model, optimizer, service.target, probe=lambda: loss_of(model), **SETTINGS) as ahead:
        train(model, optimizer, 10 * JUMP)
        stats = ahead.stats()
    assert stats.gradient_agreement is not None
    assert stats.gradient_agreement < 0.99
    assert not any(refined(stats))


@pytest.mark.parametrize(
    "more",
    [{"probe": "float"}, {"probe": "backward"}, {"on_jump": lambda _: None}, {"refine": 0}],
    ids=["float", "backward", "on_jump", "off"],
)
def test_elsewhere_jumps_are_plain(service: RunningService, more: dict[str, Any]) -> None:
    """A probe without a gradient, a model that jumps have to be adapted to, and where it is not wanted."""
    run, plain = LinearTraining(), LinearTraining()

    def backward() -> Tensor:
        loss = run.distance()
        torch.autograd.backward(loss)
        return loss

    probes = {"float": lambda: run.distance().item(), "backward": backward}
    more = {**more, "probe": probes.get(more.get("probe", ""), run.distance)}
    with attach(run, service, **more) as ahead:
        advance(run, JUMP)
        stats = ahead.stats()
    advance(plain, JUMP + 20)
    assert [(event.step, event.accepted, event.horizon) for event in stats.log] == [(JUMP, True, 20)]
    assert stats.probe_evaluations == 3  # at the first snapshot, now, and the candidate
    torch.testing.assert_close(weights(run.model), weights(plain.model), rtol=0, atol=1e-6)


def test_the_limit_holds(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with koopcast.attach(
        model, optimizer, service.target, probe=lambda: loss_of(model), refine=3, **SETTINGS
    ) as ahead:
        train(model, optimizer, 5 * JUMP)
        log = ahead.stats().log
    assert any(event.accepted for event in log)
    assert all(2 <= event.probe_evaluations <= 5 for event in log)  # now, the candidate, and three


def test_a_run_goes_on_in_another_process(service: RunningService, job_name: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = smooth_net()
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    model, optimizer = made()
    first = koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=lambda: loss_of(model), **SETTINGS
    )
    train(model, optimizer, JUMP + EVERY + 1)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict(), first.state_dict())))
    before = settled(first, WINDOW + 1)
    assert refined(before) == [True]
    first.close(keep=True)
    again, optimizer = made()
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    with koopcast.attach(
        again, optimizer, service.target, job=job_name, probe=lambda: loss_of(again), **SETTINGS
    ) as second:
        assert second.load_state_dict(saved[2])
        assert second.stats().probe_evaluations == before.probe_evaluations
        shown = bits(again)
        with second.evaluating():
            assert bits(again) == shown
        train(again, optimizer, 2 * JUMP)
        stats = second.stats()
    assert stats.steps == JUMP + EVERY + 1 + 2 * JUMP
    assert stats.gradient_agreement == pytest.approx(1.0, abs=1e-4)
    later = [event for event in stats.log if event.step > JUMP]
    assert later[0].step == 2 * JUMP
    assert any("refined" in event.reason for event in later)
    assert loss_of(again).item() < loss_of(model).item()
