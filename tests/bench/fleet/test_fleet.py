"""The benchmark itself, small: it runs, and its tables say what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fleet import load, memory
from fleet.saturation import saturated
from fleet.tables import markdown
from recording import MIB


def test_memory_of_pushes_and_of_cancelled_uploads() -> None:
    pushed = memory.pushed(clients=2, nbytes=MIB, rounds=3)
    assert pushed["held"] == [3, 3]
    assert pushed["peak"] >= pushed["idle"] > 0
    assert pushed["windows"] >= 2 * 3 * MIB
    cancelled = memory.cancelled(uploads=4, nbytes=4 * MIB, sent=2)
    assert len(cancelled["resident"]) == 5
    text = markdown({"machine": "here", "memory": [pushed], "cancelled": [cancelled], "saturation": []})
    assert "| 2 | 1 MiB |" in text


def test_four_trainers_at_saturation() -> None:
    found = saturated(trainers=4, size=10_000, seconds=1.0)
    assert found["calls"]["push"]["count"] > 4
    assert found["calls"]["health, service"]["count"] > 0
    assert found["largest error"] < 1e-3
    rounds = found["seconds a round"]
    text = markdown({"machine": "here", "memory": [], "cancelled": [], "saturation": [found]})
    assert f"| slowest trainer / fastest | {rounds['slowest'] / rounds['fastest']:.2f} |" in text


def test_a_load_that_fails_says_so() -> None:
    """No parameters: the job cannot be opened, and no service is needed to know."""
    command = [sys.executable, str(Path(load.__file__)), "127.0.0.1:1", "--jobs", "1", "--size", "0"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "ArgumentValueError" in json.loads(ended.stdout)["failures"][0]
