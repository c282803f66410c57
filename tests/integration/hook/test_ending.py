"""Trainers that end without `close`: the interpreter leaves quietly and soon, and gives the job back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch

import koopcast
from services import REPOSITORY, RunningService
from trainers import smooth_net, train

SCRIPT = """
import sys, torch, koopcast
from trainers import loss_of, smooth_net, train
model = smooth_net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
target, job = sys.argv[1] or None, sys.argv[2]
ahead = koopcast.attach(model, optimizer, target, job=job, probe=lambda: loss_of(model), every=1)
train(model, optimizer, 50)
raise SystemExit(7)
"""


@pytest.mark.parametrize("embedded", [False, True])
def test_a_script_may_just_end(service: RunningService, job_name: str, *, embedded: bool) -> None:
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, "" if embedded else service.target, job_name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "", "")
    if not embedded:
        with koopcast.connect(service.target) as client, pytest.raises(koopcast.NotFound):
            client.job_status(job_name)


def test_a_hook_ends_with_its_optimizer(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    koopcast.attach(model, optimizer, service.target, every=1)
    train(model, optimizer, 3)
    assert "koopcast-hook" in {thread.name for thread in threading.enumerate()}
    del optimizer
    gc.collect()
    assert "koopcast-hook" not in {thread.name for thread in threading.enumerate()}
