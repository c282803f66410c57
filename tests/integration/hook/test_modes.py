"""Modes: observing without ever jumping, being switched off, and letting errors through."""

from __future__ import annotations

import logging
import threading
from typing import Any, Literal

import pytest
import torch

import koopcast
from services import RunningService, free_port, running_service
from trainers import (
    LinearTraining,
    bits,
    loss_of,
    random_numbers,
    seed_all,
    settled,
    smooth_net,
    train,
    weights,
)

WINDOW = 4
EVERY = 5
SMALL = koopcast.Operator(window=WINDOW, rank=2)
SETTINGS: dict[str, Any] = {"every": EVERY, "operator": SMALL, "wait_seconds": 10.0}


@pytest.mark.parametrize("probed", [True, False])
def test_an_observer_tells_what_it_would_have_done_and_does_nothing(
    service: RunningService, job_name: str, *, probed: bool
) -> None:
    run, plain = LinearTraining(), LinearTraining()
    operator = SMALL if probed else koopcast.Operator(window=10, rank=2)
    steps = EVERY * operator.snapshots_wanted
    with koopcast.attach(
        run.model, run.optimizer, service.target, job=job_name, mode="observe", every=EVERY, operator=operator,
        probe=run.distance if probed else None, wait_seconds=10.0,
    ) as ahead, koopcast.connect(service.target) as client:  # fmt: skip
        for _ in run.train(3 * steps):
            pass
        for _ in plain.train(3 * steps):
            pass
        stats = settled(ahead, 3 * operator.snapshots_wanted)
        status = client.job_status(job_name)
    assert torch.equal(weights(run.model), weights(plain.model))
    assert stats.jumps_accepted == 0
    assert stats.jumps_rejected == len(stats.log) >= 3
    for event in stats.log:
        assert event.reason.startswith("observed: would have jumped")
        assert not event.accepted
        if probed:
            assert event.loss_after is not None
            assert event.loss_before is not None
            assert event.loss_after < event.loss_before
    assert stats.last_decision.startswith("observed: ")
    assert (status.jumps_accepted, status.jumps_rejected) == (0, 0)
    assert status.segment == 1  # one whole path
    at_attempts = sum(event.probe_evaluations for event in stats.log)
    assert stats.probe_evaluations == (1 + at_attempts if probed else 0)  # and one at the first snapshot


def test_observing_leaves_training_bit_identical(service: RunningService) -> None:
    ends = []
    modes: tuple[Literal["off", "observe"], ...] = ("off", "observe")
    for mode in modes:
        seed_all()
        model = smooth_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def probe(
            model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer
        ) -> torch.Tensor:
            random_numbers()
            loss = loss_of(model)
            torch.autograd.backward(loss)
            optimizer.step()
            return loss

        with koopcast.attach(
            model,
            optimizer,
            service.target,
            mode=mode,
            probe=probe,
            **SETTINGS,
        ) as ahead:
            train(model, optimizer, 60)
            assert (ahead.stats().jumps_proposed > 0) == (mode == "observe")
        ends.append((bits(model, optimizer), random_numbers()))
    assert ends[0] == ends[1]


def test_off_counts_steps_and_contacts_nobody() -> None:
    run = LinearTraining()
    threads = threading.active_count()
    with koopcast.attach(
        run.model, run.optimizer, f"127.0.0.1:{free_port()}", mode="off", probe=run.distance, **SETTINGS
    ) as ahead:
        for _ in run.train(3 * WINDOW * EVERY):
            pass
        assert threading.active_count() == threads
        stats = ahead.stats()
    assert stats.steps == 3 * WINDOW * EVERY
    assert stats.service_errors == stats.snapshots_dropped == stats.probe_evaluations == 0


def test_strict_raises_what_the_service_says() -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(model, optimizer, f"127.0.0.1:{free_port()}", strict=True, **SETTINGS) as ahead:
        with pytest.raises(koopcast.Unavailable):
            train(model, optimizer, 1)
        assert ahead.stats().steps == 1  # the step itself was made


def test_strict_raises_when_the_service_dies() -> None:
    with running_service("--http", "off") as service:
        model = smooth_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with koopcast.attach(model, optimizer, service.target, strict=True, **SETTINGS):
            train(model, optimizer, EVERY)
            service.kill()
            with pytest.raises(koopcast.KoopcastError):
                train(model, optimizer, 10_000)


@pytest.mark.parametrize(("call", "at_step"), [(1, EVERY), (2, WINDOW * EVERY)], ids=["first", "attempt"])
def test_strict_raises_what_a_probe_raises(
    service: RunningService, caplog: pytest.LogCaptureFixture, call: int, at_step: int
) -> None:
    """At the first snapshot, where it is asked what training is like, and at an attempt."""
    calls = 0

    def probe() -> float:
        nonlocal calls
        calls += 1
        if calls == call:
            raise ZeroDivisionError("the user's own")
        return 1.0

    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before: dict[str, bytes] = {}
    with (
        caplog.at_level(logging.WARNING, logger="koopcast"),
        koopcast.attach(model, optimizer, service.target, probe=probe, strict=True, **SETTINGS) as ahead,
    ):
        train(model, optimizer, at_step - 1)
        twin = smooth_net()
        twin.load_state_dict(model.state_dict())
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.05), 1)
        before = bits(twin)
        with pytest.raises(ZeroDivisionError):
            train(model, optimizer, 1)
        assert bits(model) == before  # stepped, and nothing of the attempt is left
        assert "ZeroDivisionError" in ahead.stats().last_decision
    assert not caplog.records


def test_weights_that_are_not_finite_raise_when_strict(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(model, optimizer, service.target, strict=True, **SETTINGS):
        with torch.no_grad():
            model.get_parameter("0.bias")[0] = torch.nan
        with pytest.raises(koopcast.InvalidArgument, match="nan"):
            train(model, optimizer, 10_000)


class Writer:
    """Keeps what TensorBoard would show."""

    def __init__(self, *, broken: bool = False) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.broken = broken

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        if self.broken:
            raise OSError("no space left on device")
        self.scalars.append((tag, value, global_step))


def test_attempts_are_written_as_scalars(service: RunningService) -> None:
    run, writer = LinearTraining(), Writer()
    with koopcast.attach(
        run.model,
        run.optimizer,
        service.target,
        probe=run.distance,
        tensorboard=writer,
        horizons=[40],
        **SETTINGS,
    ) as ahead:
        for _ in run.train(WINDOW * EVERY):
            pass
        (event,) = ahead.stats().log
    written = {tag: (value, step) for tag, value, step in writer.scalars}
    assert {step for _, step in written.values()} == {WINDOW * EVERY}
    values = {tag.removeprefix("koopcast/"): value for tag, (value, _) in written.items()}
    assert values["accepted"] == 1.0
    assert values["horizon"] == 40.0
    assert values["loss_before"] == event.loss_before
    assert values["loss_after"] == event.loss_after
    assert values["snapshots_dropped"] == 0.0
    assert 0.0 <= values["predicted_error"] < 1e-3


def test_a_writer_that_raises_is_counted_and_told_of_once(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    run = LinearTraining()
    with (
        caplog.at_level(logging.WARNING, logger="koopcast"),
        koopcast.attach(
            run.model,
            run.optimizer,
            service.target,
            probe=run.distance,
            tensorboard=Writer(broken=True),
            **SETTINGS,
        ) as ahead,
    ):
        for _ in run.train(2 * WINDOW * EVERY):
            pass
        stats = ahead.stats()
    assert stats.jumps_accepted == 2
    assert stats.tensorboard_errors >= 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "sometimes"},
        {"optimizer_state": "forget"},
        {"strict": 1},
        {"tensorboard": "runs"},
        {"encoding": "zip"},
        {"wire_dtype": "int8"},
        {"encoding": "delta"},  # float32 differences save nothing
    ],
    ids=str,
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(koopcast.InvalidArgument, match=next(iter(settings))):
        koopcast.attach(model, optimizer, "127.0.0.1:1", **settings)


@pytest.mark.parametrize(
    ("settings", "share"),
    [({"encoding": "delta", "wire_dtype": "bfloat16"}, 0.5), ({"encoding": "delta-int8"}, 0.27)],
    ids=["bfloat16", "int8"],
)
def test_fewer_bytes_travel_as_differences(
    service: RunningService, settings: dict[str, Any], share: float
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 500), torch.nn.Tanh(), torch.nn.Linear(500, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with koopcast.attach(
        model, optimizer, service.target, probe=lambda: loss_of(model), mode="observe", **settings, **SETTINGS
    ) as ahead:
        train(model, optimizer, 10 * EVERY)
        stats = settled(ahead, 10)
    assert stats.snapshot_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert stats.snapshots_pushed == 10
    assert stats.service_errors == stats.bytes_resent == 0
    assert (
        stats.bytes_sent < (1 + 9 * share + 0.05) * stats.snapshot_bytes
    )  # the first one of a segment is raw
    assert stats.jumps_proposed >= 1
