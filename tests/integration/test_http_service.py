"""The HTTP API of a real service process, with jobs made through the public client."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

import koopcast
from koopcast.v1 import snapshot_pb2, snapshot_pb2_grpc
from koopcast_server.http_models import Health, JobDetail, JobList, Problem, VersionInfo
from linear import LinearTrajectory
from services import RunningService, running_service

STRIDE = 10
PATH = LinearTrajectory(3000, seed=7)
ADA, BOB = "ada-token-0123456789", "bob-token-0123456789"


def snapshot(index: int) -> dict[str, np.ndarray]:
    weights = PATH.at(index).astype(np.float32)
    return {"layer.weight": weights[:2000].reshape(40, 50), "layer.bias": weights[2000:]}


@pytest.fixture(scope="module")
def web() -> Iterator[RunningService]:
    """A service with HTTP, open to everybody on this machine."""
    with running_service("--memory-limit", "1GiB") as running:
        yield running


@pytest.fixture(scope="module")
def browser(web: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.http_url) as http:
        yield http


@pytest.fixture
def job(web: RunningService, job_name: str) -> Iterator[koopcast.Job]:
    """A job with a full window, by tensor."""
    with koopcast.connect(web.target) as client:
        operator = koopcast.Operator(partition="tensor")
        opened = client.open_job(job_name, snapshot(0), stride=STRIDE, operator=operator)
        for index in range(13):
            opened.push(STRIDE * index, snapshot(index))
        yield opened
        opened.close()


def test_a_job_over_http_is_the_job_over_grpc(
    browser: httpx.Client, job: koopcast.Job, job_name: str
) -> None:
    first, second = job.predict_ahead([50, 100])
    job.report(first, accepted=True)
    job.report(second, accepted=False)
    status = job.status()
    found = JobDetail.model_validate_json(browser.get(f"/v1/jobs/{job_name}").raise_for_status().content)
    same = [
        *("segment", "step", "stride", "snapshots_held", "snapshots_accepted", "parameters", "window_dtype"),
        *("memory_bytes", "bytes_received", "bytes_sent", "predictions", "jumps_accepted", "jumps_rejected"),
    ]
    assert {name: getattr(found, name) for name in same} == {name: getattr(status, name) for name in same}
    assert (found.step, found.snapshots_held) == (120, 12)
    assert (found.jumps_accepted, found.jumps_rejected) == (1, 1)
    assert found.last_prediction_seconds == pytest.approx(status.last_prediction_seconds)
    assert found.operator.partition == "tensor"
    assert found.lease.held
    assert 0 < found.lease.expires_in_seconds <= 60
    assert [block.name for block in found.blocks] == ["layer.weight", "layer.bias"]
    for block, told in zip(found.blocks, status.blocks, strict=True):
        assert (block.rank, block.moved) == (told.rank, told.moved)
        assert block.backtest_error == pytest.approx(told.backtest_error)
        assert block.backtest_error_linear == pytest.approx(told.backtest_error_linear)
        values = [complex(value.real or 0.0, value.imaginary or 0.0) for value in block.eigenvalues]
        assert values == pytest.approx(list(told.eigenvalues))
        assert max(map(abs, values)) == pytest.approx(0.97, abs=1e-3)
        assert block.predicted_error == pytest.approx(told.predicted_error)
        assert [mode.energy for mode in block.modes] == pytest.approx([mode.energy for mode in told.modes])
        slowest = block.modes[0]
        assert slowest.time_constant_steps == pytest.approx(-STRIDE / math.log(0.97), rel=0.05)
    assert found.summary is not None
    assert status.summary is not None
    assert found.summary.model_dump() == pytest.approx(asdict(status.summary))
    assert found.trusted_horizon_steps == pytest.approx(status.trusted_horizon_steps)
    assert [point.model_dump() for point in found.history] == [
        pytest.approx(asdict(point)) for point in status.history
    ]
    assert [(point.step, point.horizon_steps, point.moved) for point in found.history] == [(120, 100.0, True)]


def test_blocks_come_in_parts_and_the_summary_speaks_of_all(browser: httpx.Client, job: koopcast.Job) -> None:
    answer = browser.get(f"/v1/jobs/{job.name}?first_block=1&max_blocks=1").raise_for_status()
    found = JobDetail.model_validate_json(answer.content)
    assert [block.name for block in found.blocks] == ["layer.bias"]
    assert found.blocks_total == 2
    assert found.summary is not None
    assert found.summary.blocks == 2
    assert found.history == []


def test_a_short_window_gives_null_and_not_nan(
    web: RunningService, browser: httpx.Client, job_name: str
) -> None:
    with koopcast.connect(web.target) as client:
        opened = client.open_job(job_name, snapshot(0), stride=STRIDE)
        for index in range(3):
            opened.push(STRIDE * index, snapshot(index))
        text = browser.get(f"/v1/jobs/{job_name}").raise_for_status().text
        opened.close()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["snapshots_held"] == 3
    assert found["blocks"][0]["rank"] >= 1
    assert found["blocks"][0]["backtest_error"] is None


def test_the_list_has_the_job_until_it_closes(
    web: RunningService, browser: httpx.Client, job_name: str
) -> None:
    def names() -> set[str]:
        listed = JobList.model_validate_json(browser.get("/v1/jobs").raise_for_status().content)
        return {job.name for job in listed.jobs}

    with koopcast.connect(web.target) as client:
        opened = client.open_job(job_name, snapshot(0), stride=1)
        assert job_name in names()
        opened.close()
    assert job_name not in names()
    gone = browser.get(f"/v1/jobs/{job_name}")
    assert Problem.model_validate_json(gone.content).reason == "JOB_NOT_FOUND"


def test_service_endpoints(browser: httpx.Client, job: koopcast.Job) -> None:
    assert browser.get("/livez").json() == {"status": "alive"}
    assert browser.get("/readyz").json() == {"status": "ready"}
    health = Health.model_validate_json(browser.get("/healthz").raise_for_status().content)
    assert (health.status, health.memory_limit_bytes) == ("ready", 1 << 30)
    assert health.jobs >= 1
    assert health.memory_bytes >= job.status().memory_bytes
    assert VersionInfo.model_validate_json(browser.get("/version").content).device == health.device
    assert 'koopcast_snapshots_total{outcome="accepted"}' in browser.get("/metrics").text
    assert browser.get("/openapi.json").json()["info"]["title"] == "koopcast"
    assert "<title>koopcast</title>" in browser.get("/").text


def test_tokens(tmp_path: Path, job_name: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ada:{ADA}\nbob:{BOB}\n", "utf-8")
    with (
        running_service("--token-file", str(tokens)) as service,
        koopcast.connect(service.target, token=ADA) as client,
        httpx.Client(base_url=service.http_url) as http,
    ):
        client.open_job(job_name, snapshot(0), stride=1)
        assert http.get("/readyz").status_code == 200
        refused = http.get("/v1/jobs")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert Problem.model_validate_json(refused.content).reason == "NO_TOKEN"
        wrong = http.get("/", headers={"authorization": "Bearer " + "x" * 20})
        assert Problem.model_validate_json(wrong.content).reason == "WRONG_TOKEN"
        assert http.get("/", auth=("", ADA)).status_code == 200
        hers = http.get(f"/v1/jobs/{job_name}", headers={"authorization": f"Bearer {ADA}"})
        assert JobDetail.model_validate_json(hers.content).owner == "ada"
        assert http.get(f"/v1/jobs/{job_name}", auth=("bob", BOB)).status_code == 403
        assert http.get("/v1/jobs", auth=("bob", BOB)).json()["jobs"] == []


def test_a_draining_service_is_alive_and_not_ready() -> None:
    finish = threading.Event()
    with (
        running_service("--drain-seconds", "20") as service,
        httpx.Client(base_url=service.http_url) as http,
        _silent_upload(service.target, finish),
    ):
        service.process.terminate()
        deadline = time.monotonic() + 15
        while http.get("/readyz").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert Problem.model_validate_json(http.get("/readyz").content).reason == "DRAINING"
        assert Health.model_validate_json(http.get("/healthz").content).status == "unavailable"
        assert http.get("/livez").status_code == 200
        finish.set()
        assert service.process.wait(timeout=15) == 0


@contextlib.contextmanager
def _silent_upload(target: str, finish: threading.Event) -> Iterator[None]:
    """An upload that sends nothing and ends when told to: an open call, which a drain waits for."""

    def messages() -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        finish.wait(60)
        yield from ()

    with grpc.insecure_channel(target) as channel:
        stream = snapshot_pb2_grpc.SnapshotServiceStub(channel).PushSnapshot(messages())
        time.sleep(0.3)  # until the call has reached the service
        try:
            yield
        finally:
            finish.set()
            stream.cancel()
