"""Two data-parallel ranks: the first decides, both jump at the same step, and their weights never part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services import REPOSITORY, RunningService, running_service

pytest.importorskip("torch.distributed")


def trained(service: RunningService, folder: Path) -> list[dict[str, Any]]:
    """What the ranks have at the end; the service is killed half-way."""
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script = str(REPOSITORY / "tests/support/rank.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(folder / "store"), str(rank), service.target, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 60
        while not (folder / "paused").exists() and time.monotonic() < deadline and ranks[0].poll() is None:
            time.sleep(0.01)
        service.kill()
        (folder / "resume").touch()
        outputs = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def test_ranks_jump_together_and_stay_together_when_the_service_dies(tmp_path: Path) -> None:
    with running_service("--http", "off") as service:
        first, second = trained(service, tmp_path)
    assert first["accepted"] >= 2
    assert all(step <= 65 for step, _ in first["log"])
    assert (
        first["jumps"] == first["accepted"]
    )  # once an accepted jump: what other candidates added was undone
    assert second["pushed"] == second["accepted"] == 0
    assert "first rank" in second["last_decision"]
    assert (first["steps"], first["weights"]) == (second["steps"], second["weights"])
