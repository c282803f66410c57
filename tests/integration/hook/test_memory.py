"""How much memory the hook takes of a trainer, measured on a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from services import REPOSITORY, RunningService

PARAMETERS = 8 << 20  # 32 MiB, so that what does not grow with the model is little beside it
SLACK = 0.4
"""For what does not grow with the model: chunks on their way, threads, heaps. Unit: the parameters' bytes (13 MB)."""


@pytest.mark.parametrize(
    ("optimizer", "average"), [("sgd", False), ("adam", False), ("sgd", True)], ids=["sgd", "adam", "average"]
)
def test_memory_is_bounded(service: RunningService, optimizer: str, *, average: bool) -> None:
    """Two snapshot buffers between jumps; at a jump also two displacements; what undoing needs is copied into both.

    Of Adam's state of two parameters' size, one does not fit there: it lies beside them until the jump was looked
    back on.
    """
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    script = str(REPOSITORY / "tests/support/remembering.py")
    ended = subprocess.run(
        [
            sys.executable,
            script,
            service.target,
            optimizer,
            "average" if average else "single",
            str(PARAMETERS),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    held = json.loads(ended.stdout)
    print(held)
    assert (held["accepted"], held["undone"], held["errors"]) == (1, 0, 0), held
    assert held["probes"] == 6, held
    mean = 1 if average else 0
    beside = 1 if optimizer == "adam" else 0
    assert held["between"] <= 2 + mean + SLACK, held
    assert held["at_the_jump"] <= 4 + mean + SLACK, held
    assert held["after"] <= 2 + beside + mean + SLACK, held
    assert held["looking_back"] <= 4 + mean + SLACK, held
