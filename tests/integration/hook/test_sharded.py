"""Two ranks that hold a part of the model each: the jumps of an unsharded run, and no rank waits for ever for another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import koopcast
from services import REPOSITORY, RunningService, running_service

pytest.importorskip("torch.distributed")
from part import EVERY, OPERATOR, Approach, loss_of, uneven_net  # noqa: E402  # it needs torch.distributed

Report = dict[str, Any]


def started(service: RunningService, folder: Path, settings: dict[str, Any]) -> list[subprocess.Popen[str]]:
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script, options = str(REPOSITORY / "tests/support/part.py"), json.dumps(settings)
    return [
        subprocess.Popen(
            [sys.executable, script, str(folder / "store"), str(rank), service.target, str(folder), options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(settings["ranks"])
    ]


def reported(ranks: list[subprocess.Popen[str]]) -> list[Report]:
    """What the ranks have at the end; all must end well."""
    try:
        outputs = [rank.communicate(timeout=90) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def unsharded(service: RunningService, settings: dict[str, Any]) -> tuple[list[float], list[list[Any]]]:
    """The same run in one process: its weights and buffers at the end, and the jumps."""
    model: Any = uneven_net() if settings["kind"] == "fsdp" else Approach(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.get("rate", 0.05), momentum=0.5)
    loss = (lambda: loss_of(model)) if settings["kind"] == "fsdp" else model.loss
    arguments = {"probe": loss, "wait_seconds": 10.0, **settings.get("attach", {})}
    operator = koopcast.Operator(**{**OPERATOR, **settings.get("operator", {})})
    with koopcast.attach(
        model, optimizer, service.target, every=EVERY, operator=operator, **arguments
    ) as ahead:
        for _ in range(settings["steps"]):
            optimizer.zero_grad()
            torch.autograd.backward(loss())
            optimizer.step()
        log = [[event.step, event.accepted, event.horizon] for event in ahead.stats().log]
    flat = torch.cat([t.detach().flatten().double() for t in [*model.parameters(), *model.buffers()]])
    return flat.tolist(), log


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"operator": {"partition": "tensor", "observable": "state"}, "attach": {"average": True}},
        {"attach": {"probe": None, "lag": 2}},
    ],
    ids=["network", "tensor-state-average", "no-probe-lag"],
)
def test_fsdp_jumps_like_the_unsharded_run(
    service: RunningService, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"kind": "fsdp", "ranks": 2, "steps": 100, **settings}
    first, second = reported(started(service, tmp_path, settings))
    expected, log = unsharded(service, settings)
    assert first["log"] == log, (first, second)
    assert first["accepted"] >= 1
    torch.testing.assert_close(torch.tensor(first["weights"]), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert first["weights"] == second["weights"]
    assert first["job"] == second["job"]
    assert first["probes"] == second["probes"]
    assert min(first["pushed"], second["pushed"]) >= 19  # the last one may have been under way at the end
    assert first["dropped"] == second["dropped"] == 0
    assert 0 < second["bytes"] < first["bytes"] < 100_000
