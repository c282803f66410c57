"""What the service must reach, through the public client against a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import koopcast
from linear import LinearTrajectory, relative_error
from services import REPOSITORY, RunningService, running_service

WINDOW = 12


@pytest.mark.parametrize(
    ("real", "modulus", "angle"), [(0.97, 0.95, 0.3), (0.98, 0.97, 0.2), (0.99, 0.9, 0.5), (0.95, 0.9, 0.3)]
)
def test_three_modes_in_100_000_dimensions_five_windows_ahead(
    client: koopcast.Client, job_name: str, real: float, modulus: float, angle: float
) -> None:
    """float32, default settings; the error is relative to the distance moved."""
    path = LinearTrajectory(100_000, seed=1, real=real, modulus=modulus, angle=angle)

    def snapshot(index: int) -> dict[str, np.ndarray]:
        return {"w": path.at(index).astype(np.float32)}

    with client.open_job(job_name, snapshot(0), stride=10) as job:
        for index in range(WINDOW):
            job.push(10 * index, snapshot(index))
        prediction = job.predict_ahead(5 * WINDOW * 10)
        truth = path.displacement(WINDOW - 1, 6 * WINDOW - 1)
        assert relative_error(prediction.displacement["w"], truth) < 1e-4


@pytest.fixture(scope="module")
def roomy_service() -> Iterator[RunningService]:
    with running_service("--memory-limit", "4GiB") as running:
        yield running


def test_20_jobs_of_a_million_parameters_push_and_predict_side_by_side(roomy_service: RunningService) -> None:
    """From two processes; how long health checks take meanwhile is for tests/bench/fleet/run.py."""
    script = REPOSITORY / "tests" / "bench" / "fleet" / "load.py"
    loads = [
        subprocess.Popen(
            [sys.executable, str(script), roomy_service.target, "--prefix", f"bar-{number}", "--rounds", "6"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for load in loads:
        output, _ = load.communicate(timeout=100)
        report = json.loads(output)
        assert report["failures"] == []
        assert len(report["seconds"]["push"]) == 10 * 6
        assert len(report["seconds"]["error"]) == 10 * 4
        assert max(report["seconds"]["error"]) < 1e-4
