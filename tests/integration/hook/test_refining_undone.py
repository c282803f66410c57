"""Refined jumps that training cannot hold, that cannot be made, or whose probes raise: what is left of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import koopcast
from koopcast.hook.gradients import GradientTrial
from refined import EVERY, JUMP, advance, attach, refined, with_momentum
from services import RunningService
from trainers import LinearTraining, bits, weights


@pytest.mark.parametrize("policy", ["auto", "keep"])
def test_what_becomes_of_momentum(service: RunningService, policy: Any) -> None:
    run = with_momentum()
    with attach(run, service, optimizer_state=policy) as ahead:
        advance(run, JUMP)
        assert refined(ahead.stats()) == [True]
    moving = [state["momentum_buffer"].any() for state in run.optimizer.state.values()]
    assert moving == [policy == "keep"] * 2


def driven_off(run: LinearTraining, ahead: koopcast.Ahead) -> None:
    """Trained where what refining finds cannot be held, until that is given up."""
    advance(run, JUMP)
    for _ in range(5):
        proposed = ahead.stats().jumps_proposed
        advance(run, EVERY - 1)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(5.0)
        advance(run, 1)
        if ahead.stats().jumps_proposed == proposed:
            return
    raise AssertionError("it is never given up")


def natural() -> LinearTraining:
    return advance(with_momentum(), JUMP)


def test_a_jump_that_training_cannot_hold(service: RunningService) -> None:
    run, plain = with_momentum(), natural()
    with attach(run, service) as ahead:
        driven_off(run, ahead)
        stats = ahead.stats()
        assert stats.jumps_accepted == 0
        assert stats.jumps_undone == stats.jumps_proposed >= 1
        before = bits(run.model, run.optimizer)
        assert before == bits(plain.model, plain.optimizer)
        far = run.distance().item()
        with ahead.evaluating():
            best = run.distance().item()
        assert best < 1e-6 * far
        assert bits(run.model, run.optimizer) == before
        with pytest.raises(KeyboardInterrupt), ahead.evaluating():
            raise KeyboardInterrupt
        assert bits(run.model, run.optimizer) == before
        train_on = advance(run, 2)
        advance(plain, 2)
        assert bits(train_on.model, train_on.optimizer) == bits(plain.model, plain.optimizer)
    assert run.distance().item() == best
    ahead.close()
    with ahead.evaluating():  # closed, it is the model's own
        assert run.distance().item() == best


def test_a_run_that_may_come_back_keeps_the_weights_of_training(service: RunningService) -> None:
    run, plain = with_momentum(), natural()

    def interrupted() -> None:
        with attach(run, service) as ahead:
            driven_off(run, ahead)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert bits(run.model, run.optimizer) == bits(plain.model, plain.optimizer)


@pytest.mark.parametrize("how", ["in place", "assigned"])
def test_weights_that_were_replaced_are_not_overwritten(service: RunningService, how: str) -> None:
    run = with_momentum()
    with attach(run, service) as ahead:
        driven_off(run, ahead)
        loaded = {name: torch.full_like(value, 0.5) for name, value in run.model.state_dict().items()}
        run.model.load_state_dict(loaded, assign=how == "assigned")
        if how == "in place":
            ahead.start_segment()
        else:
            run.optimizer.param_groups[0]["params"] = list(run.model.parameters())
            advance(run, EVERY)  # it is noticed at the next snapshot
        before = bits(run.model)
        with ahead.evaluating():
            assert bits(run.model) == before
    assert bits(run.model) == before


@pytest.mark.parametrize("watch", [True, False])
def test_where_weights_cannot_be_placed_nothing_happens(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, *, watch: bool
) -> None:
    monkeypatch.setattr(GradientTrial, "place", lambda *_: False)
    run, plain = with_momentum(), natural()
    with attach(run, service, watch=watch) as ahead:
        advance(run, JUMP)
        stats = ahead.stats()
        assert bits(run.model, run.optimizer) == bits(plain.model, plain.optimizer)
    assert (stats.jumps_accepted, stats.jumps_rejected) == (0, 1)
    assert stats.last_decision == "the jump was undone"


def raising(run: LinearTraining, at_calls: Callable[[int], bool]) -> Callable[[], Tensor]:
    calls = 0

    def probe() -> Tensor:
        nonlocal calls
        calls += 1
        if at_calls(calls):
            raise ZeroDivisionError("the user's own")
        return run.distance()

    return probe


def test_strict_raises_what_a_probe_raises_inside_refinement(service: RunningService) -> None:
    run, plain = with_momentum(), natural()
    probe = raising(run, lambda call: call == 4)  # after the first snapshot's, now, and the candidate
    with attach(run, service, probe=probe, strict=True) as ahead:
        advance(run, JUMP - 1)
        with pytest.raises(ZeroDivisionError):
            advance(run, 1)
        assert bits(run.model, run.optimizer) == bits(plain.model, plain.optimizer)
        assert "ZeroDivisionError" in ahead.stats().last_decision


@pytest.mark.parametrize("last", [4, 1000])
def test_a_probe_that_raises_inside_refinement_costs_evaluations(
    service: RunningService, caplog: pytest.LogCaptureFixture, last: int
) -> None:
    """Once, or for good: then what is left is the predicted jump."""
    run, plain = with_momentum(), advance(with_momentum(), JUMP + 20)
    probe = raising(run, lambda call: 4 <= call <= last)
    with caplog.at_level(logging.WARNING, logger="koopcast"), attach(run, service, probe=probe) as ahead:
        advance(run, JUMP)
        stats = ahead.stats()
    assert stats.jumps_accepted == 1
    assert refined(stats) == [last == 4]
    assert len(caplog.records) == 1
    if last != 4:
        torch.testing.assert_close(
            weights(run.model), weights(plain.model), rtol=0, atol=0.02
        )  # momentum: two modes
