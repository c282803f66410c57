"""A run that is killed and started again goes on as if nothing had happened: with its job, and with its window."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import koopcast
from services import REPOSITORY, RunningService, running_service
from trainers import LinearTraining, settled, weights

WINDOW = 4
EVERY = 5
SETTINGS: dict[str, Any] = {
    "every": EVERY,
    "operator": koopcast.Operator(window=WINDOW, rank=2),
    "horizons": [40],
    "wait_seconds": 10.0,
    "refine": 0,
}


def started(service: RunningService, job: str, folder: Path, stop_at: int) -> subprocess.Popen[str]:
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    return subprocess.Popen(
        [
            sys.executable,
            str(REPOSITORY / "tests/support/resumed.py"),
            service.target,
            job,
            str(folder),
            str(stop_at),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def killed_once_saved(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "saved\n"
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def whole(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run that nobody kills comes to."""
    return finished(started(service, "whole", tmp_path_factory.mktemp("whole"), 0))


@pytest.mark.parametrize(
    "stop_at", [27, 65]
)  # between two snapshots of the first window; at one of the second
def test_a_killed_run_jumps_as_if_it_had_gone_on(
    service: RunningService, whole: dict[str, Any], tmp_path: Path, job_name: str, stop_at: int
) -> None:
    killed_once_saved(started(service, job_name, tmp_path, stop_at))
    resumed = finished(started(service, job_name, tmp_path, 0))
    assert resumed["goes_on"] is True
    assert any(accepted for step, _, accepted, _ in resumed["log"] if step > stop_at)
    assert {**resumed, "goes_on": None} == whole


def test_without_the_window_the_run_goes_on_in_a_new_one(tmp_path: Path) -> None:
    with running_service("--http", "off") as service:
        killed_once_saved(started(service, "lost", tmp_path, 25))
        service.restart()
        resumed = finished(started(service, "lost", tmp_path, 0))
    assert resumed["goes_on"] is False
    assert resumed["steps"] == 90
    assert resumed["log"][0][0] == 25 + 8 * EVERY  # a window of 8 after step 25


def attached(run: LinearTraining, service: RunningService, job: str, **settings: Any) -> koopcast.Ahead:
    return koopcast.attach(
        run.model, run.optimizer, service.target, job=job, probe=run.distance, **{**SETTINGS, **settings}
    )


def resumed_run(run: LinearTraining) -> LinearTraining:
    """The same weights in another process, as it were."""
    twin = LinearTraining()
    twin.model.load_state_dict(run.model.state_dict())
    return twin


def test_a_job_that_was_kept_goes_on(service: RunningService, job_name: str) -> None:
    run, plain = LinearTraining(), LinearTraining()
    first = attached(run, service, job_name)
    for _ in run.train(13):
        pass
    state = pickle.loads(pickle.dumps(first.state_dict()))
    first.close(keep=True)
    twin = resumed_run(run)
    with attached(twin, service, job_name) as second:
        assert second.load_state_dict(state)
        for _ in twin.train(7):
            pass
        stats = second.stats()
    for _ in plain.train(60):
        pass
    assert [event.step for event in stats.log if event.accepted] == [WINDOW * EVERY]
    torch.testing.assert_close(weights(twin.model), weights(plain.model), rtol=0, atol=1e-6)
    assert (stats.steps, stats.snapshots_pushed) == (20, 4)


def test_snapshots_after_the_saved_state_make_the_window_another_runs(
    service: RunningService, job_name: str
) -> None:
    run = LinearTraining()
    first = attached(run, service, job_name)
    for _ in run.train(7):
        pass
    state = first.state_dict()
    twin = resumed_run(run)
    for _ in run.train(6):
        pass
    settled(first, 2)
    first.close(keep=True)
    with attached(twin, service, job_name) as second:
        assert not second.load_state_dict(state)
        for _ in twin.train(WINDOW * EVERY):
            pass
        assert [event.step for event in second.stats().log] == [7 + WINDOW * EVERY]


def test_other_settings_begin_a_new_window(service: RunningService, job_name: str) -> None:
    run = LinearTraining()
    first = attached(run, service, job_name)
    for _ in run.train(10):
        pass
    state = first.state_dict()
    first.close(keep=False)
    with attached(resumed_run(run), service, job_name, every=2) as second:
        assert not second.load_state_dict(state)
        assert second.stats().steps == 10


def test_a_run_that_lives_is_told_when_another_one_takes_its_job(
    service: RunningService, job_name: str
) -> None:
    run = LinearTraining()
    with attached(run, service, job_name) as first:
        for _ in run.train(12):
            pass
        state = first.state_dict()
        twin = resumed_run(run)
        with attached(twin, service, job_name) as second:
            assert not second.stats().connected
            assert second.load_state_dict(state)
            assert second.stats().connected
            for _ in run.train(30):
                pass
            settled(first, 99)
            assert not first.stats().connected
            assert first.stats().jumps_accepted == 0


@pytest.mark.parametrize("wrong", [7, {}, {"format": 99}])
def test_a_state_of_something_else_is_refused(service: RunningService, wrong: Any) -> None:
    run = LinearTraining()
    with (
        attached(run, service, "wrong-state") as ahead,
        pytest.raises(koopcast.InvalidArgument, match="state"),
    ):
        ahead.load_state_dict(wrong)


def test_a_state_comes_before_the_first_step_and_from_the_same_job(
    service: RunningService, job_name: str
) -> None:
    run = LinearTraining()
    with attached(run, service, job_name) as ahead:
        state = ahead.state_dict()
        with pytest.raises(koopcast.ArgumentValueError, match="job"):
            ahead.load_state_dict({**state, "job": "another"})
        for _ in run.train(1):
            pass
        with pytest.raises(koopcast.ArgumentValueError, match="first step"):
            ahead.load_state_dict(state)
