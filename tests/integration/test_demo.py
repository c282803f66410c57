"""`koopcast demo` as a user runs it: real digits, a real service, honest figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REQUIRED = {
    "baseline_steps",
    "accelerated_steps",
    "step_ratio",
    "baseline_seconds",
    "accelerated_seconds",
    "jumps_proposed",
    "jumps_accepted",
    "target_loss",
    "final_loss_baseline",
    "final_loss_accelerated",
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_tells_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "koopcast_server", "demo", "--json", "demo.json", "--plot", "demo.png"]
    environment = {
        name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"
    }  # as a user has it
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=380, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert set(figures) >= REQUIRED
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert figures["target_loss"] == figures["final_loss_baseline"]
    assert figures["step_ratio"] == pytest.approx(figures["baseline_steps"] / figures["accelerated_steps"])
    assert figures["optimizer_steps"] + figures["probe_evaluations"] >= figures["accelerated_steps"]
    assert 0 < figures["jumps_refined"] <= figures["jumps_accepted"]
    assert figures["bytes_sent"] > 0
    assert figures["learning_rate"] == float(min(figures["grid"], key=figures["grid"].get))
    assert figures["step_ratio"] > 1.5
    assert "the service's view" in result.stdout
    assert f"{figures['step_ratio']:.2f}x" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_task_of_the_suite_tells_what_it_measured(tmp_path: Path) -> None:
    task = ["--task", "hamiltonian-oscillator", "--json", "task.json", "--plot", "task.png"]
    result = run_demo(tmp_path, *task, seconds=180)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "task.json").read_text())
    assert (tmp_path / "task.png").read_bytes().startswith(b"\x89PNG")
    assert (figures["task"], figures["optimizer"], figures["seed"]) == ("hamiltonian-oscillator", "adamw", 0)
    assert figures["counted_steps"] == figures["optimizer_steps"] + figures["probe_evaluations"]
    for target in figures["targets"]:
        assert target["step_ratio"] == pytest.approx(target["baseline_steps"] / target["accelerated_steps"])
        assert target["step_ratio"] > 1.5
        assert f"{target['step_ratio']:.2f}x" in result.stdout
    assert figures["last_decision"].split(":")[0] in " ".join(result.stdout.split())


def test_tasks_and_their_data_are_listed(tmp_path: Path) -> None:
    result = run_demo(tmp_path, "--list")
    assert result.returncode == 0, result.stderr
    for word in ("pinn-burgers", "stochastic", "made on the spot", "dataset-fashion-mnist", "koopcast[demo]"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--task", "fashion-mlp"), 1, "apt-get install dataset-fashion-mnist"),
        (("--task", "pinn-burgers", "--optimizer", "lion"), 1, "adadelta"),
        (("--optimizer", "adam"), 2, "--optimizer goes with --task"),
    ],
)
def test_what_cannot_run_says_why(
    options: tuple[str, ...], status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOOPCAST_FASHION_MNIST", str(tmp_path))
    result = run_demo(tmp_path, *options)
    assert result.returncode == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def run_demo(folder: Path, *options: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "koopcast_server", "demo", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds, check=False)


def test_missing_digits_are_named(tmp_path: Path) -> None:
    environment = {**os.environ, "KOOPCAST_MNIST": str(tmp_path / "absent.npz")}
    command = [sys.executable, "-m", "koopcast_server", "demo"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment, check=False
    )
    assert result.returncode == 1
    assert "KOOPCAST_MNIST=" in result.stderr
    assert "Traceback" not in result.stderr
