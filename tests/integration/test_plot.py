"""`koopcast plot` against a real service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import koopcast
from koopcast_server.__main__ import app
from linear import LinearTrajectory
from services import RunningService

PATH = LinearTrajectory(3000, seed=7)
STRIDE = 10
PNG = b"\x89PNG\r\n\x1a\n"


def snapshot(index: int) -> dict[str, np.ndarray]:
    weights = PATH.at(index).astype(np.float32)
    return {"layer.weight": weights[:2000].reshape(40, 50), "layer.bias": weights[2000:]}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where figures go that nobody named."""
    monkeypatch.chdir(tmp_path)


def plot(service: RunningService, job: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["plot", job, service.target, *options])


@pytest.fixture
def job(client: koopcast.Client, job_name: str) -> koopcast.Job:
    """A job by tensor, whose window is full, and which has answered three times."""
    operator = koopcast.Operator(partition="tensor")
    opened = client.open_job(job_name, snapshot(0), stride=STRIDE, operator=operator)
    for index in range(15):
        opened.push(STRIDE * index, snapshot(index))
        if index > 11:
            opened.predict_ahead(50)
    return opened


def test_what_is_plotted_is_what_the_service_says(
    client: koopcast.Client, job: koopcast.Job, job_name: str
) -> None:
    status = client.job_status(job_name)
    assert status.summary is not None
    assert (status.summary.blocks, status.summary.moved) == (2, 2)
    assert [point.step for point in status.history] == [120, 130, 140]
    for block in status.blocks:
        assert [mode.eigenvalue for mode in block.modes] == list(block.eigenvalues)
        assert sum(mode.energy for mode in block.modes) == pytest.approx(1.0)
        slowest = block.modes[0]
        assert slowest.time_constant_steps == pytest.approx(-STRIDE / np.log(abs(slowest.eigenvalue)))
        assert slowest.residual < 1e-2
    assert status.history[-1].spectral_radius == pytest.approx(status.summary.spectral_radius)
    (second,) = client.job_status(job_name, first_block=1, max_blocks=1).blocks
    assert second.name == "layer.bias"


def test_a_figure_of_the_first_block_and_of_a_named_one(
    service: RunningService, job: koopcast.Job, job_name: str, tmp_path: Path
) -> None:
    first = plot(service, job_name)
    assert (first.exit_code, first.output) == (0, f"{job_name}.png\n")
    named = plot(service, job_name, "--block", "layer.bias", "--output", "bias.svg")
    assert (named.exit_code, named.output) == (0, "bias.svg\n")
    assert (tmp_path / f"{job_name}.png").read_bytes().startswith(PNG)
    assert "<svg" in (tmp_path / "bias.svg").read_text("utf-8")


def test_what_cannot_be_plotted_is_said_in_a_sentence(
    service: RunningService, client: koopcast.Client, job: koopcast.Job, job_name: str, tmp_path: Path
) -> None:
    young = client.open_job(f"{job_name}-young", snapshot(0), stride=STRIDE)
    young.push(0, snapshot(0))
    for arguments, said in [
        ([job_name, "--block", "x"], "no block 'x'; it has 2, numbered from 0: layer.weight, layer.bias"),
        ([job_name, "--block", "2"], "no block '2'; it has 2"),
        ([job_name, "--output", "nowhere/a.png"], "cannot write nowhere/a.png"),
        ([job_name, "--output", "a.nothing"], "cannot write a.nothing"),
        ([young.name], "has no operator yet: it needs 3 snapshots and holds 1"),
        (["nobody"], "nobody"),
    ]:
        result = plot(service, *arguments)
        assert result.exit_code == 1, arguments
        assert said in result.output
    assert list(tmp_path.iterdir()) == []
