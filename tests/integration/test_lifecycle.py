"""The process: what it prints, how it drains, what it says of bad settings, when jobs end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import koopcast
from services import RunningService, running_service

WEIGHTS = {"w": np.arange(6.0)}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def koopcast_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "koopcast_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_sigterm_turns_health_and_exits_0() -> None:
    with running_service() as service, grpc.insecure_channel(service.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        service.process.terminate()
        assert next(watch).status == NOT_SERVING
        assert service.process.wait(timeout=15) == 0


def test_a_call_that_does_not_end_is_cut_after_the_bound() -> None:
    """An upload that stalls cannot keep the service alive."""
    with running_service("--http", "off", "--drain-seconds", "0.5") as service:
        client = koopcast.connect(service.target)
        with grpc.insecure_channel(service.target) as channel:
            call: Any = channel.stream_stream("/koopcast.v1.SnapshotService/PushSnapshot")
            ended = threading.Event()
            stalled = call(iter(ended.wait, True))
            time.sleep(0.3)
            started = time.monotonic()
            service.process.terminate()
            assert service.process.wait(timeout=15) == 0
            assert time.monotonic() - started < 10
            stalled.cancel()
            ended.set()
        client.close()


def test_health_and_reflection_name_the_services(service: RunningService) -> None:
    names = {f"koopcast.v1.{name}Service" for name in ("Job", "Snapshot", "Prediction")}
    with grpc.insecure_channel(service.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", *names):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = reflection.ServerReflectionInfo(iter([request]))
        listed = {found.name for found in next(answers).list_services_response.service}
    assert names <= listed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda:99"], "cuda:99 was asked for"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N"),
        (["--memory-limit", "much"], 'memory must be given like "8GiB"'),
        (["--workers", "0"], "--workers"),
        (["--listen", "nowhere"], "--listen takes host:port"),
        (["--http", "127.0.0.1:http"], "--http takes host:port"),
        (["--log-level", "loud"], "--log-level"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings_are_named_and_exit_2(options: list[str], words: str) -> None:
    given = [*options]
    for name in ("--listen", "--http"):
        if name not in given:
            given += [name, "127.0.0.1:0"]
    result = koopcast_command("serve", *given)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_may_come_from_the_environment() -> None:
    with running_service(environment={"KOOPCAST_MEMORY_LIMIT_BYTES": "1MiB"}) as service:
        with koopcast.connect(service.target) as client, pytest.raises(koopcast.ResourceExhausted) as caught:
            client.open_job("big", {"w": koopcast.TensorSpec("float32", (10**6,))}, stride=1)
        assert caught.value.details["limit_bytes"] == str(2**20)


def test_jobs_without_a_writer_expire() -> None:
    with (
        running_service("--http", "off", "--job-ttl", "0.3", "--lease-seconds", "30") as service,
        koopcast.connect(service.target) as client,
    ):
        job = client.open_job("left", WEIGHTS, stride=1)
        held = client.open_job("held", WEIGHTS, stride=1)
        job.close(keep=True)
        deadline = time.monotonic() + 10
        while "left" in {status.name for status in client.jobs()}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert held.push(0, WEIGHTS).outcome == "accepted"


def test_a_lease_that_ran_out_is_free_and_a_heartbeat_keeps_one() -> None:
    with running_service("--http", "off", "--lease-seconds", "0.6") as service:
        silent = koopcast.connect(service.target)
        job = silent.open_job("silent", WEIGHTS, stride=1)
        job.push(0, WEIGHTS)
        with koopcast.connect(service.target) as alive:
            kept = alive.open_job("alive", WEIGHTS, stride=1)
            silent._closing.set()  # stops its heartbeat, as the end of its process would
            time.sleep(1.5)
            with koopcast.connect(service.target) as other:
                resumed = other.open_job("silent", WEIGHTS, stride=1)
                assert resumed.resumed
                assert resumed.snapshots_held == 1
                with pytest.raises(koopcast.AlreadyExists, match="has a writer"):
                    other.open_job("alive", WEIGHTS, stride=1)
                assert kept.push(0, WEIGHTS).outcome == "accepted"
            with pytest.raises(koopcast.LeaseLost):
                job.push(1, WEIGHTS)


def test_the_jobs_command_lists_jobs(service: RunningService, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name[:20], WEIGHTS, stride=1)
    for step in range(4):
        job.push(step, {name: array + step for name, array in WEIGHTS.items()})
    assert job.status().predictability == pytest.approx(1.0)
    result = koopcast_command("jobs", service.target)
    assert result.returncode == 0
    assert "predictable" in result.stdout
    assert "1.00" in next(line for line in result.stdout.splitlines() if job_name[:8] in line)
    nobody = koopcast_command("jobs", "127.0.0.1:9")
    assert nobody.returncode == 1
    assert "cannot be reached" in nobody.stderr.replace("\n", " ")


def test_the_version_command() -> None:
    result = koopcast_command("version")
    assert result.returncode == 0
    assert result.stdout.startswith(f"koopcast {koopcast.__version__} (protocol 1, Python 3.")
