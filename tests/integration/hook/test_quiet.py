"""Where every jump is refused the hook goes quiet: training is as it would be, and hardly anything is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import koopcast
from services import RunningService
from trainers import bits, loss_of, random_numbers, seed_all, settled, smooth_net, train

EVERY, WINDOW = 2, 4
FULL = EVERY * WINDOW
STEPS = 1200
SETTINGS: dict[str, Any] = {
    "every": EVERY, "operator": koopcast.Operator(window=WINDOW, rank=2), "horizons": [4, 8], "wait_seconds": 10.0,
}  # fmt: skip


def decided(steps: int) -> list[int]:
    """Steps of attempts that are all refused."""
    found, step, pause = [FULL, FULL + FULL // 2], FULL + FULL // 2, 1
    while step + (pause + 1) * FULL <= steps:
        step += (pause + 1) * FULL
        found.append(step)
        pause = min(2 * pause, 64)
    return found


def refusing() -> Tensor:
    """Never lower than before: each call gives more."""
    refusing.calls += 1.0  # type: ignore[attr-defined]
    return torch.tensor(refusing.calls)  # type: ignore[attr-defined]


def trained(target: str | None, job: str, **more: Any) -> tuple[Any, ...]:
    seed_all()
    refusing.calls = 0.0  # type: ignore[attr-defined]
    model = smooth_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = {"mode": "off"} if target is None else {"probe": refusing, "job": job, **SETTINGS, **more}
    with koopcast.attach(model, optimizer, target, **settings) as ahead:
        train(model, optimizer, STEPS)
        stats = settled(ahead, WINDOW * len(decided(STEPS)) - WINDOW // 2) if target else ahead.stats()
    return bits(model, optimizer), random_numbers(), stats


@pytest.mark.parametrize(
    "more", [{}, {"average": True}, {"snapshots": "trainer"}], ids=["raw", "average", "trainer"]
)
def test_refusals_make_it_quiet(service: RunningService, job_name: str, more: dict[str, Any]) -> None:
    plain = trained(None, job_name)
    refused = trained(service.target, job_name, **more)
    assert refused[:-1] == plain[:-1]
    stats = refused[-1]
    attempts = decided(STEPS)
    assert [event.step for event in stats.log] == attempts
    assert len(attempts) == 9
    assert (
        stats.snapshots_pushed == WINDOW * len(attempts) - WINDOW // 2
    )  # the second attempt needs half as many
    assert stats.snapshots_pushed < 0.06 * STEPS / EVERY
    assert stats.snapshots_dropped == stats.service_errors == 0
    assert stats.probe_evaluations < 0.03 * STEPS


def test_windows_on_both_sides_of_a_pause_are_two_segments(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    refusing.calls = 0.0  # type: ignore[attr-defined]
    with (
        koopcast.attach(model, optimizer, service.target, job=job_name, probe=refusing, **SETTINGS) as ahead,
        koopcast.connect(service.target) as client,
    ):
        begin = FULL + FULL // 2 + FULL  # two attempts, and a pause of one window
        train(model, optimizer, begin + EVERY - 1)
        settled(ahead, 6)
        status = client.job_status(job_name)
        assert (status.segment, status.snapshots_held) == (1, WINDOW)
        train(model, optimizer, 1)
        settled(ahead, 7)
        status = client.job_status(job_name)
        assert (status.segment, status.snapshots_held) == (2, 1)


def test_a_jump_ends_the_quiet(service: RunningService, job_name: str) -> None:
    """Refused until step 200, and let jump from then on: the first attempt after that jumps, and others soon follow."""
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    refusing.calls = 0.0  # type: ignore[attr-defined]

    def probe() -> Tensor:
        return refusing() if ahead.stats().steps < 200 else loss_of(model)

    with koopcast.attach(
        model, optimizer, service.target, job=job_name, probe=probe, refine=0, **SETTINGS
    ) as ahead:
        train(model, optimizer, 360)
        log = ahead.stats().log
    later = [event for event in log if event.step >= 200]
    assert later[0].accepted
    assert later[0].step == next(step for step in decided(400) if step >= 200)
    assert later[1].step == later[0].step + FULL


def test_a_saved_pause_goes_on(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    refusing.calls = 0.0  # type: ignore[attr-defined]
    third = decided(STEPS)[2]
    with koopcast.attach(model, optimizer, service.target, job=job_name, probe=refusing, **SETTINGS) as ahead:
        train(model, optimizer, third + 3)
        state = ahead.state_dict()
    with koopcast.attach(model, optimizer, service.target, job=job_name, probe=refusing, **SETTINGS) as ahead:
        ahead.load_state_dict(state)
        train(model, optimizer, 200 - third - 3)
        assert [event.step for event in ahead.stats().log] == decided(200)


def test_a_broken_path_does_not_end_a_pause(service: RunningService, job_name: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    refusing.calls = 0.0  # type: ignore[attr-defined]
    with koopcast.attach(model, optimizer, service.target, job=job_name, probe=refusing, **SETTINGS) as ahead:
        train(model, optimizer, FULL + FULL // 2 + 1)
        optimizer.param_groups[0]["lr"] = 0.001
        train(model, optimizer, 1)
        ahead.start_segment()
        train(model, optimizer, 3 * FULL)
        assert [event.step for event in ahead.stats().log] == decided(40)
