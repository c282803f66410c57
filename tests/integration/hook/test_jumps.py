"""Jumps through a real service: when they are made, what they do to the weights, what is counted."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from torch import nn

import koopcast
from services import RunningService
from trainers import LinearTraining, NoisyNet, bits, loss_of, settled, smooth_net, steps, train, weights

WINDOW = 4
EVERY = 5
SMALL = koopcast.Operator(window=WINDOW, rank=2)
PATIENT = 10.0


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("average", [False, True])
def test_a_jump_lands_where_training_would_have_come(
    service: RunningService, *, average: bool, lag: int
) -> None:
    run, plain = LinearTraining(), LinearTraining()
    horizon = 40
    with koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.distance, every=EVERY, operator=SMALL, average=average,
        lag=lag, horizons=[horizon], refine=0, wait_seconds=PATIENT,
    ) as ahead:  # fmt: skip
        jump_step = WINDOW * EVERY + lag
        for step in run.train(jump_step):
            if step == jump_step - 1:
                assert ahead.stats().jumps_proposed == 0
        for _ in plain.train(jump_step + horizon):
            pass
        # Averages of a step's decay e^-γ over a steps are too large by (aγ)²/24; a shift by half a stride would be 4 %.
        tolerance = 1e-3 if average else 1e-6
        torch.testing.assert_close(weights(run.model), weights(plain.model), rtol=0, atol=tolerance)
        (event,) = ahead.stats().log
        assert (event.step, event.horizon, event.accepted) == (jump_step, horizon, True)
        assert event.loss_before is not None
        assert event.loss_after is not None
        assert event.loss_after == pytest.approx(run.distance().item(), rel=1e-12)
        assert event.loss_after < event.loss_before


def test_a_jump_translates_the_present_weights_and_nothing_else(service: RunningService) -> None:
    run = LinearTraining()
    moved: list[torch.Tensor] = []
    momentum: dict[int, object] = {}
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.02, momentum=0.5)
    with koopcast.attach(
        run.model, optimizer, service.target, probe=run.distance, every=EVERY, operator=SMALL, average=True,
        wait_seconds=PATIENT, on_jump=lambda model: moved.append(weights(model).clone()),
    ) as ahead:  # fmt: skip
        for step in steps(run.model, optimizer, WINDOW * EVERY, lambda _: run.distance()):
            if step == WINDOW * EVERY - 1:
                momentum = copy.deepcopy(optimizer.state_dict()["state"])
        assert ahead.stats().jumps_accepted == 1
    assert any(torch.equal(weights(run.model), candidate) for candidate in moved)
    after = optimizer.state_dict()["state"]
    assert set(after) == set(momentum)  # one more step was taken, nothing was added or cleared
    assert all(entry["momentum_buffer"].abs().sum() > 0 for entry in after.values())


def test_counters_agree_with_the_service(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=lambda: loss_of(model), every=EVERY, operator=SMALL,
        refine=0, wait_seconds=PATIENT,
    ) as ahead:  # fmt: skip
        train(model, optimizer, 208)  # the last jump, at step 200, was looked back on
        stats = settled(ahead, 41)
        with koopcast.connect(service.target) as client:
            status = client.job_status(job_name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert stats.steps == 208
    assert stats.jumps_accepted >= 2
    assert stats.jumps_proposed == stats.jumps_accepted + stats.jumps_rejected == len(stats.log)
    assert (status.jumps_accepted, status.jumps_rejected) == (stats.jumps_accepted, stats.jumps_rejected)
    assert status.snapshots_accepted == stats.snapshots_pushed == 41
    assert stats.bytes_sent == status.bytes_received == 41 * 4 * parameters
    assert stats.bytes_received == status.bytes_sent > 0
    assert status.segment == stats.jumps_accepted + stats.jumps_undone + 1
    looked_back = stats.jumps_accepted + stats.jumps_undone
    at_attempts = sum(event.probe_evaluations for event in stats.log)
    assert stats.probe_evaluations == 1 + at_attempts + looked_back  # the first one at the first snapshot
    assert 0 < stats.seconds_blocked < stats.seconds_in_hook < stats.seconds
    assert stats.snapshots_dropped == stats.service_errors == 0
    with koopcast.connect(service.target) as client, pytest.raises(koopcast.NotFound):
        client.job_status(job_name)  # closed with the context


def test_jump_steps_are_fixed_in_advance(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    # At the first snapshot; then refused, accepted, refused: each attempt probes twice.
    losses = iter([1.0, 1.0, 2.0, 1.0, 0.5, 1.0, 2.0])
    with koopcast.attach(
        model, optimizer, service.target, probe=lambda: next(losses), every=EVERY, operator=SMALL, horizons=[20],
        wait_seconds=PATIENT, lag=2,
    ) as ahead:  # fmt: skip
        train(model, optimizer, 60)
        log = ahead.stats().log
    first = WINDOW * EVERY + 2
    second = first + WINDOW // 2 * EVERY
    assert [(event.step, event.accepted) for event in log] == [
        (first, False),
        (second, True),
        (second + WINDOW * EVERY + 2, False),
    ]


def test_without_a_probe_jumps_stay_within_the_backtest(service: RunningService) -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, service.target, every=EVERY, operator=koopcast.Operator(window=10, rank=2),
        wait_seconds=PATIENT,
    ) as ahead:  # fmt: skip
        for _ in run.train(50):
            pass
        (event,) = ahead.stats().log
        assert event.accepted
        assert event.horizon == 3 * EVERY  # the back-test of 9 velocities looks 3 strides ahead
        assert event.loss_before is event.loss_after is None
        assert ahead.stats().probe_evaluations == 0


def test_without_a_probe_longer_horizons_are_declined(service: RunningService) -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, service.target, every=EVERY, operator=koopcast.Operator(window=10, rank=2),
        wait_seconds=PATIENT, horizons=[4 * EVERY, 100 * EVERY],
    ) as ahead:  # fmt: skip
        before = LinearTraining()
        for _ in run.train(50):
            pass
        for _ in before.train(50):
            pass
        assert torch.equal(weights(run.model), weights(before.model))
        assert ahead.stats().jumps_rejected == 1
        assert "back-test" in ahead.stats().last_decision


def test_a_late_answer_is_discarded(service: RunningService) -> None:
    run, plain = LinearTraining(), LinearTraining()
    with koopcast.attach(
        run.model,
        run.optimizer,
        service.target,
        probe=run.distance,
        every=EVERY,
        operator=SMALL,
        wait_seconds=0.0,
    ) as ahead:
        for step in run.train(80):
            if step % EVERY == 0:
                settled(ahead, step // EVERY)  # time enough for the pushes, and for a late answer to do harm
        for _ in plain.train(80):
            pass
        stats = ahead.stats()
    assert torch.equal(weights(run.model), weights(plain.model))
    assert stats.last_decision == "no answer in time"
    assert stats.jumps_proposed == stats.service_errors == 0
    assert stats.snapshots_pushed > WINDOW


def test_a_lag_gives_the_answer_time_to_come(service: RunningService) -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.distance, every=EVERY, operator=SMALL, wait_seconds=0.0,
        lag=4,
    ) as ahead:  # fmt: skip
        for step in run.train(WINDOW * EVERY + 4):
            if step % EVERY == 0:
                settled(ahead, step // EVERY)
            while step > WINDOW * EVERY and not ahead.stats().bytes_received:
                time.sleep(0.01)
        assert ahead.stats().jumps_accepted == 1
        assert ahead.stats().seconds_blocked < 0.1


def test_loading_other_weights_begins_a_segment(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=lambda: loss_of(model), every=EVERY, operator=SMALL,
        wait_seconds=PATIENT,
    ) as ahead, koopcast.connect(service.target) as client:  # fmt: skip
        train(model, optimizer, 3 * EVERY)
        settled(ahead, 3)
        segment = client.job_status(job_name).segment
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer, EVERY)
        settled(ahead, 4)
        status = client.job_status(job_name)
        assert (status.segment, status.snapshots_held) == (segment + 1, 1)
        assert ahead.stats().jumps_proposed == 0
        assert "1 of 4" in ahead.stats().last_decision

        ahead.start_segment()  # what a user says who loaded weights in place
        train(model, optimizer, 2 * EVERY)
        settled(ahead, 6)
        status = client.job_status(job_name)
        assert (status.segment, status.snapshots_held) == (segment + 2, 2)


def test_a_dropped_snapshot_begins_a_segment(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=lambda: loss_of(model), every=1, operator=SMALL,
        wait_seconds=0.05,
    ) as ahead, koopcast.connect(service.target) as client:  # fmt: skip
        train(model, optimizer, 2)
        settled(ahead, 2)
        service.pause()
        try:
            train(model, optimizer, 6)
        finally:
            service.resume()
        dropped = ahead.stats().snapshots_dropped
        assert 0 < dropped < 6
        settled(ahead, 8 - dropped)
        train(model, optimizer, 1)
        settled(ahead, 9 - dropped)
        status = client.job_status(job_name)
        assert status.step == 9
        assert (status.segment, status.snapshots_held) == (2, 1)
        assert ahead.stats().service_errors == 0


def test_types_may_mix(service: RunningService) -> None:
    model = smooth_net()
    model[0].double()
    model[2].bfloat16()

    def loss(_: nn.Module) -> torch.Tensor:
        return sum((p.double() - 1).square().sum() for p in model.parameters())  # type: ignore[return-value]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with koopcast.attach(
        model,
        optimizer,
        service.target,
        probe=lambda: loss(model),
        every=EVERY,
        operator=SMALL,
        wait_seconds=PATIENT,
    ) as ahead:
        for _ in steps(model, optimizer, 60, loss):
            pass
        assert ahead.stats().jumps_accepted >= 1
        assert ahead.stats().service_errors == 0


def test_the_embedded_service_serves_as_well() -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, probe=run.distance, every=EVERY, operator=SMALL, wait_seconds=PATIENT
    ) as ahead:
        for _ in run.train(WINDOW * EVERY):
            pass
        assert ahead.stats().jumps_accepted == 1


def test_an_exception_keeps_the_job_and_a_plain_close_frees_it(
    service: RunningService, job_name: str
) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def attached() -> koopcast.Ahead:
        return koopcast.attach(model, optimizer, service.target, job=job_name, every=EVERY, operator=SMALL)

    def failing() -> None:
        with attached():
            train(model, optimizer, EVERY)
            raise ZeroDivisionError

    with koopcast.connect(service.target) as client:
        with pytest.raises(ZeroDivisionError):
            failing()
        assert not client.job_status(job_name).lease.held
        ahead = attached()
        assert client.job_status(job_name).lease.held
        ahead.close()
        ahead.close()
        with pytest.raises(koopcast.NotFound):
            client.job_status(job_name)
    steps_then = ahead.stats().steps
    train(model, optimizer, EVERY)
    assert ahead.stats().steps == steps_then


def test_the_optimizer_can_be_copied_and_pickled(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters())
    with koopcast.attach(model, optimizer, service.target, every=1, operator=SMALL) as ahead:
        train(model, optimizer, 2)
        copied = copy.deepcopy(optimizer)
        pickled = pickle.loads(pickle.dumps(optimizer))
        twin = copy.deepcopy(model)
        copied.step()
        pickled.step()
        assert ahead.stats().steps == 2  # the copies are not attached
        assert bits(twin) == bits(model)


def test_steps_that_a_scaler_skips_do_not_count(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with koopcast.attach(model, optimizer, service.target, every=1, operator=SMALL) as ahead:
        for factor in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(loss_of(model) * factor))
            scaler.step(optimizer)
            scaler.update()
        assert ahead.stats().steps == 2


def test_a_probe_that_steps_the_optimizer_does_not_count_steps(service: RunningService) -> None:
    run = LinearTraining()

    def probe() -> torch.Tensor:
        loss = run.distance()
        torch.autograd.backward(loss)
        run.optimizer.step()
        return loss

    with koopcast.attach(
        run.model,
        run.optimizer,
        service.target,
        probe=probe,
        every=EVERY,
        operator=SMALL,
        wait_seconds=PATIENT,
    ) as ahead:
        for _ in run.train(WINDOW * EVERY):
            pass
        assert ahead.stats().steps == WINDOW * EVERY
        assert ahead.stats().jumps_accepted == 1


@pytest.mark.parametrize(("call", "at_step"), [(1, EVERY), (2, WINDOW * EVERY)], ids=["first", "attempt"])
def test_closing_inside_a_probe_is_safe(service: RunningService, call: int, at_step: int) -> None:
    run = LinearTraining()
    calls = 0

    def probe() -> float:
        nonlocal calls
        calls += 1
        if calls == call:
            ahead.close()
        return 1.0

    ahead = koopcast.attach(
        run.model,
        run.optimizer,
        service.target,
        probe=probe,
        every=EVERY,
        operator=SMALL,
        wait_seconds=PATIENT,
    )
    for _ in run.train(2 * WINDOW * EVERY):
        pass
    assert ahead.stats().steps == at_step


def test_frozen_and_tied_parameters_stay_whole(service: RunningService) -> None:
    torch.manual_seed(0)
    model = NoisyNet().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model,
        optimizer,
        service.target,
        probe=lambda: loss_of(model),
        every=EVERY,
        operator=SMALL,
        wait_seconds=PATIENT,
    ) as ahead:
        train(model, optimizer, 60)
        assert ahead.stats().jumps_accepted >= 1
    assert torch.equal(model.scale, torch.ones(1))
    assert model.tied is model.second
