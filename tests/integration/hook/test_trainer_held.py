"""Windows in the trainer's own memory: the same jumps as with pushed snapshots, and next to nothing on the wire."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import nn

import koopcast
from services import RunningService, running_service
from trainers import LinearTraining, NoisyNet, bits, loss_of, seed_all, settled, smooth_net, train, weights

WINDOW = 4
EVERY = 5
SMALL = koopcast.Operator(window=WINDOW, rank=2)
PATIENT = 10.0


def run_with(service: RunningService, snapshots: str, count: int = 120, **settings: Any) -> tuple[Any, Any]:
    """A deterministic training run under the hook: the model at the end, and what was done."""
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    arguments: dict[str, Any] = {"operator": SMALL, "probe": lambda: loss_of(model), "wait_seconds": PATIENT}
    with koopcast.attach(
        model, optimizer, service.target, **{**arguments, "every": EVERY, "snapshots": snapshots, **settings}
    ) as ahead:
        train(model, optimizer, count)
        return model, ahead.stats()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"average": True},
        {"operator": koopcast.Operator(window=WINDOW, rank=2, partition="tensor", observable="state")},
        {"operator": koopcast.Operator(window=WINDOW, rank=2, partition="node")},
        {"lag": 3},
        {"probe": None},
        {"learning_rate": lambda step: 0.05},
    ],
    ids=["network", "average", "tensor-state", "node", "lag", "no-probe", "clock"],
)
def test_the_same_jumps_as_with_pushed_snapshots(service: RunningService, settings: dict[str, Any]) -> None:
    pushed, there = run_with(service, "server", **settings)
    held, here = run_with(service, "trainer", **settings)
    assert [(event.step, event.accepted, event.horizon) for event in here.log] == [
        (event.step, event.accepted, event.horizon) for event in there.log
    ]
    assert here.jumps_accepted >= 1
    assert here.snapshots_dropped == there.snapshots_dropped
    torch.testing.assert_close(weights(held), weights(pushed), rtol=1e-5, atol=1e-5)


def test_a_jump_of_a_million_parameters_costs_less_than_100_kb(service: RunningService) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1000), nn.Tanh(), nn.Linear(1000, 1000), nn.Tanh(), nn.Linear(1000, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with koopcast.attach(
        model, optimizer, service.target, every=1, snapshots="trainer", probe=lambda: loss_of(model),
        wait_seconds=PATIENT, watch=False,
    ) as ahead:  # fmt: skip
        train(model, optimizer, 33)
        stats = ahead.stats()
    assert stats.jumps_proposed >= 2
    assert stats.jumps_accepted >= 1
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**6
    assert 0 < stats.bytes_sent + stats.bytes_received < 100_000 * stats.jumps_proposed


def test_refused_jumps_leave_training_bit_identical(service: RunningService) -> None:
    def trained(*, attached: bool) -> tuple[dict[str, bytes], int]:
        seed_all()
        model = NoisyNet()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # a path worth looking at: else it is quiet
        if not attached:
            train(model, optimizer, 80)
            return bits(model, optimizer), 0
        losses = iter(range(1000))
        with koopcast.attach(
            model, optimizer, service.target, every=EVERY, snapshots="trainer", operator=SMALL,
            probe=lambda: loss_of(model).detach() * 0 + next(losses), on_jump=loss_of, wait_seconds=PATIENT,
        ) as ahead:  # fmt: skip
            train(model, optimizer, 80)
            return bits(model, optimizer), ahead.stats().jumps_rejected

    plain, _ = trained(attached=False)
    hooked, rejected = trained(attached=True)
    assert rejected >= 3
    assert hooked == plain


def test_observing_never_jumps(service: RunningService) -> None:
    model, stats = run_with(service, "trainer", mode="observe")
    plain = smooth_net()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.5), 120)
    assert torch.equal(weights(model), weights(plain))
    assert any("would have jumped" in event.reason for event in stats.log)


def test_the_slot_of_the_ring_is_the_only_copy(service: RunningService) -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.distance, every=EVERY, snapshots="trainer", operator=SMALL,
        wait_seconds=PATIENT,
    ) as ahead:  # fmt: skip
        hidden: Any = ahead
        pool = hidden._leader.recorder._pool
        (slot,) = pool._free.queue
        window = pool._ring.window
        for step in run.train(3 * EVERY):
            if step % EVERY:
                continue
            settled(ahead, step // EVERY)
            parts = slot.tensors
            start, end = window.spare.data_ptr(), window.spare.data_ptr() + window.spare.nbytes
            assert all(start <= part.data_ptr() < end for part in parts.values())
            assert torch.equal(
                torch.cat([part.flatten() for part in window.split(window.last).values()]), weights(run.model)
            )
        assert window.nbytes == type(window).bytes_needed(hidden._trainer.selection.specs, SMALL)


def test_a_lost_service_is_found_again_with_an_empty_window() -> None:
    run = LinearTraining()
    with running_service("--http", "off") as service, koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.distance, every=EVERY, snapshots="trainer",
        operator=SMALL, wait_seconds=PATIENT, horizons=[10],
    ) as ahead:  # fmt: skip
        for step in run.train(200):
            if step == 2 * EVERY:
                settled(ahead, 2)
                service.kill()
            if step == 3 * EVERY + 1:
                service.restart()
                while not ahead.stats().connected:
                    time.sleep(0.01)
        stats = ahead.stats()
    assert stats.service_errors >= 1
    assert stats.snapshots_dropped >= 1
    assert stats.jumps_accepted >= 1


def test_a_resumed_run_begins_a_new_window(service: RunningService, job_name: str) -> None:
    run = LinearTraining()
    arguments: dict[str, Any] = {
        "job": job_name, "probe": run.distance, "every": EVERY, "snapshots": "trainer", "operator": SMALL,
        "wait_seconds": PATIENT,
    }  # fmt: skip
    ahead = koopcast.attach(run.model, run.optimizer, service.target, **arguments)
    for _ in run.train(3 * EVERY):
        pass
    settled(ahead, 3)
    state = copy.deepcopy(ahead.state_dict())
    ahead.close(keep=True)
    with koopcast.attach(run.model, run.optimizer, service.target, **arguments) as again:
        assert not again.load_state_dict(state)
        for step in run.train((WINDOW + 1) * EVERY):
            if step == WINDOW * EVERY:
                assert again.stats().jumps_proposed == 1
        assert again.stats().snapshots_dropped == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lag": EVERY}, "lag"),
        ({"operator": koopcast.Operator(window="segment", partition="node")}, "window"),
        ({"operator": koopcast.Operator(mask_tolerance=1.0)}, "mask_tolerance"),
        ({"encoding": "delta"}, "encoding"),
        ({"wire_dtype": "float16"}, "wire_dtype"),
        ({"window_device": "cuda:99"}, "window_device"),
        ({"window_device": "nowhere"}, "window_device"),
        ({"window_device": "cpu", "snapshots": "server"}, "window_device"),
        ({"snapshots": "elsewhere"}, "snapshots"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    arguments = {"every": EVERY, "snapshots": "trainer", **settings}
    with pytest.raises(koopcast.InvalidArgument) as caught:
        koopcast.attach(model, optimizer, "127.0.0.1:1", **arguments)
    assert caught.value.details["field"] == field
    assert not optimizer._optimizer_step_post_hooks
