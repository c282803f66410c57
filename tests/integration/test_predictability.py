"""The predictability index through a real service: with answers, in the status of the job, and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import numpy.typing as npt
import pytest

import koopcast
from koopcast.operator import Partition
from services import RunningService, running_service

COUNT, STRIDE = 12, 10
Snapshots = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service with HTTP."""
    with running_service("--memory-limit", "1GiB") as running:
        yield running


def smooth() -> Snapshots:
    """(12, 600): two decaying modes."""
    rng, times = np.random.default_rng(0), np.arange(COUNT)[:, None]
    return (0.97**times * rng.standard_normal(600) + 0.8**times * rng.standard_normal(600)).astype(np.float32)


def noisy() -> Snapshots:
    """(12, 600): a random walk."""
    return np.random.default_rng(0).standard_normal((COUNT, 600)).cumsum(axis=0).astype(np.float32)


def pushed(
    client: koopcast.Client, name: str, path: Snapshots, operator: koopcast.Operator | None = None
) -> koopcast.Job:
    job = client.open_job(name, {"w": path[0]}, stride=STRIDE, operator=operator or koopcast.Operator())
    for index, weights in enumerate(path):
        job.push(STRIDE * index, {"w": weights})
    return job


@pytest.mark.parametrize("partition", ["network", "weight"])
def test_it_tells_training_from_noise(client: koopcast.Client, job_name: str, partition: Partition) -> None:
    operator = koopcast.Operator(partition=partition)
    found = []
    for number, path in enumerate((smooth(), noisy())):
        with pushed(client, f"{job_name[:100]}-{number}", path, operator) as job:
            near, far = job.predict_ahead([STRIDE, 40 * STRIDE])
            assert near.summary.predictability == far.summary.predictability
            found.append(near.summary.predictability)
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] > 0.95
    assert found[1] < 0.1


def test_it_is_told_wherever_the_job_is(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    with pushed(client, job_name, smooth()) as job:
        wanted = job.predict_ahead(2 * STRIDE).summary.predictability
        assert wanted == pytest.approx(1.0, abs=1e-3)
        status = job.status()
        assert status.summary is not None
        assert status.predictability == status.summary.predictability == wanted
        assert {one.name: one.predictability for one in client.jobs()}[job_name] == wanted
        with httpx.Client(base_url=service.http_url) as browser:
            one = browser.get(f"/v1/jobs/{job_name}").raise_for_status().json()
            listed = browser.get("/v1/jobs").raise_for_status().json()["jobs"]
        assert one["predictability"] == one["summary"]["predictability"] == pytest.approx(wanted)
        assert {job["name"]: job["predictability"] for job in listed}[job_name] == pytest.approx(wanted)


def test_it_is_unknown_before_a_back_test_and_outlasts_the_window(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    path = noisy()
    with client.open_job(job_name, {"w": path[0]}, stride=STRIDE) as job:
        for index in range(3):
            job.push(STRIDE * index, {"w": path[index]})
        assert job.predict_ahead(STRIDE).summary.predictability is None
        assert job.status().predictability is None
        with httpx.Client(base_url=service.http_url) as browser:
            assert browser.get(f"/v1/jobs/{job_name}").raise_for_status().json()["predictability"] is None
        for index in range(3, COUNT):
            job.push(STRIDE * index, {"w": path[index]})
        known = job.status().predictability
        assert known is not None
        job.start_segment()
        job.push(STRIDE * COUNT, {"w": path[0]})
        status = job.status()
        assert status.summary is None
        assert status.predictability == known
