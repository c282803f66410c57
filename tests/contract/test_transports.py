"""One contract for every way to reach a service: TCP, Unix socket, TLS with a token, embedded."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koopcast
from credentials import TOKENS, make_credentials
from linear import LinearTrajectory, relative_error
from services import running_service

PATH = LinearTrajectory(400_000, seed=11)


@pytest.fixture(scope="module", params=["tcp", "unix", "tls", "embedded"])
def connected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[koopcast.Client]:
    """A client over each transport."""
    directory: Path = tmp_path_factory.mktemp("transport")
    if request.param == "embedded":
        with koopcast.connect(None) as client:
            yield client
    elif request.param == "tcp":
        with running_service("--http", "off") as service, koopcast.connect(service.target) as client:
            yield client
    elif request.param == "unix":
        address = f"unix:{directory / 'socket'}"
        with running_service("--http", "off", "--listen", address), koopcast.connect(address) as client:
            yield client
    else:
        made = make_credentials(directory)
        with (
            running_service("--http", "off", *made.tls_options, *made.token_options) as service,
            koopcast.connect(service.target, ca=made.ca, token=TOKENS["alice"]) as client,
        ):
            yield client


def test_snapshots_travel_up_and_displacements_down(connected: koopcast.Client) -> None:
    """Three megabytes a snapshot: several chunks each way."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    with connected.open_job(name, {"w": PATH.at(0)}, stride=2) as job:
        for index in range(12):
            assert job.push(2 * index, {"w": PATH.at(index)}).snapshots_held == index + 1
        near, far = job.predict_ahead([2, 8])
        assert relative_error(near.displacement["w"], PATH.displacement(11, 12)) < 1e-5
        assert relative_error(far.displacement["w"], PATH.displacement(11, 15)) < 1e-5
        job.report(near, accepted=True)
        assert job.status().jumps_accepted == 1


def test_errors_keep_their_class_and_details(connected: koopcast.Client) -> None:
    with pytest.raises(koopcast.NotFound) as caught:
        connected.job_status("nobody")
    assert caught.value.reason == "JOB_NOT_FOUND"
    name = f"contract-{uuid.uuid4().hex[:8]}"
    with connected.open_job(name, {"w": np.ones(3)}, stride=1) as job:
        with pytest.raises(koopcast.InvalidArgument, match="'w' holds nan at flat index 1"):
            job.push(0, {"w": np.array([1.0, np.nan, 3.0])})
        assert job.push(0, {"w": np.ones(3)}).outcome == "accepted"


def test_the_writer_is_listed(connected: koopcast.Client) -> None:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    with connected.open_job(name, {"w": np.ones(3)}, stride=1):
        listed = {status.name: status for status in connected.jobs()}
        assert listed[name].lease.held
        assert listed[name].lease.holder.startswith("koopcast/")
    assert name not in {status.name for status in connected.jobs()}


@pytest.mark.parametrize("encoding", ["raw", "delta", "delta-int8"])
def test_every_kind_of_payload_arrives(connected: koopcast.Client, encoding: str) -> None:
    """Dense, scattered and narrow tensors; several chunks; the same step again changes nothing."""

    def snapshot(index: int) -> dict[str, np.ndarray]:
        weights = np.cos(np.arange(900_000, dtype=np.float32)) * np.float32(1 + 0.5**index)
        return {
            "dense": weights[:600_000],
            "transposed": weights[600_000:840_000].reshape(400, 600).T,
            "every third": weights[840_000::3],
            "scalar": weights[7:8].reshape(()),
        }

    name = f"contract-{uuid.uuid4().hex[:8]}"
    settings: dict[str, Any] = {"encoding": encoding, "keep_weights": False}
    settings["wire_dtype"] = "bfloat16" if encoding == "delta" else "float32"
    with connected.open_job(
        name, snapshot(0), stride=1, operator=koopcast.Operator("state", window=3), **settings
    ) as job:
        for index in range(4):
            assert job.push(index, snapshot(index)).outcome == "accepted"
        assert job.push(3, snapshot(3)).outcome == "duplicate"
        held, pushed = job.predict_ahead(1)._base(), snapshot(3)
        for key, array in pushed.items():
            np.testing.assert_allclose(held[key], array, rtol=0, atol=0 if encoding == "raw" else 5e-3)
        assert job.status().snapshots_accepted == 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")
def test_memory_is_shared_over_every_transport(connected: koopcast.Client) -> None:
    """All of them are on one host here: the bytes are the same with and without."""
    weights = np.random.default_rng(0).standard_normal(5_000_000, dtype=np.float32)
    held = []
    for shares in (True, False):
        with connected.open_job(
            f"contract-{uuid.uuid4().hex[:8]}",
            {"w": weights},
            stride=1,
            operator=koopcast.Operator("state", window=3),
            keep_weights=False,
            shared_memory=shares,
        ) as job:
            assert job.shares_memory is shares
            for index in range(3):
                assert job.push(index, {"w": weights / np.float32(1 + index)}).outcome == "accepted"
            held.append(job.predict_ahead(1)._base()["w"].tobytes())
    assert held[0] == held[1] == (weights / np.float32(3)).tobytes()
