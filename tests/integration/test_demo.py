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
    assert figures["bytes_sent"] > 0
    assert figures["learning_rate"] == float(min(figures["grid"], key=figures["grid"].get))
    assert figures["step_ratio"] > 1.5
    assert "the service's view" in result.stdout
    assert f"{figures['step_ratio']:.2f}x" in result.stdout


def test_missing_digits_are_named(tmp_path: Path) -> None:
    environment = {**os.environ, "KOOPCAST_MNIST": str(tmp_path / "absent.npz")}
    command = [sys.executable, "-m", "koopcast_server", "demo"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment, check=False
    )
    assert result.returncode == 1
    assert "KOOPCAST_MNIST=" in result.stderr
    assert "Traceback" not in result.stderr
