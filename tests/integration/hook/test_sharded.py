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
from part import EVERY, OPERATOR, Approach, loss_of, uneven_net  # it needs torch.distributed

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
    """The same run in one process: its weights and buffers at the end, and the jumps.

    Its probe gives plain numbers, since parts never look at gradients either.
    """
    model: Any = uneven_net() if settings["kind"] == "fsdp" else Approach(None)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.get("lr", 0.05), momentum=settings.get("momentum", 0.5)
    )
    loss = (lambda: loss_of(model)) if settings["kind"] == "fsdp" else model.loss
    arguments = {"probe": lambda: loss().detach(), "wait_seconds": 10.0, **settings.get("attach", {})}
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
        {"kind": "fsdp", "lr": 0.01, "attach": {"horizons": [20, 40]}},
        {
            "kind": "fsdp",
            "lr": 0.003,
            "momentum": 0.0,
            "operator": {"partition": "tensor", "observable": "state"},
            "attach": {"average": True, "horizons": [10, 20]},
        },
        {"kind": "by-hand", "momentum": 0.0, "attach": {"probe": None}},
    ],
    ids=["network", "tensor-state-average", "no-probe"],
)
def test_the_jumps_of_the_unsharded_run(
    service: RunningService, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {
        "ranks": 2,
        "steps": 62,
        **settings,
    }  # slow enough for a path that can be foretold: else it is quiet
    first, second = reported(started(service, tmp_path, settings))
    expected, log = unsharded(service, settings)
    assert first["log"] == log, (first, second)
    assert first["accepted"] >= 1
    torch.testing.assert_close(torch.tensor(first["weights"]), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert first["weights"] == second["weights"]
    assert first["job"] == second["job"]
    assert first["probes"] == second["probes"]
    assert min(first["pushed"], second["pushed"]) >= 11  # the last one may have been under way at the end
    assert first["dropped"] == second["dropped"] == 0
    assert 0 < second["bytes"] < first["bytes"] < 100_000


def plain(settings: dict[str, Any], rank: int) -> list[float]:
    """The weights of a rank that trains its part alone, without jumps."""
    model = Approach(None)
    if settings["kind"] == "by-hand":
        for parameter in model.parameters():
            parameter.data = parameter.data.chunk(settings["ranks"])[rank].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    for _ in range(settings["steps"]):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss())
        optimizer.step()
    found: list[float] = torch.cat([p.detach().flatten().double() for p in model.parameters()]).tolist()
    return found


@pytest.mark.parametrize(
    ("kind", "what", "where"),
    [
        ("by-hand", "kill", ["in the probe", 2]),
        ("by-hand", "stop", ["in the probe", 2]),
        ("by-hand", "stop", ["before step", 20]),
        ("replicas", "kill", ["before step", 20]),
        ("replicas", "stop", ["before step", 20]),
    ],
)
def test_no_rank_waits_for_ever_for_one_that_is_gone(
    service: RunningService, tmp_path: Path, kind: str, what: str, where: list[Any]
) -> None:
    settings = {
        "kind": kind, "ranks": 2, "steps": 60, "fault": [what, *where], "attach": {"meeting_seconds": 2.0},
    }  # fmt: skip
    first, last = started(service, tmp_path, settings)
    try:
        output, errors = first.communicate(timeout=60)  # while the last one is dead, or stopped
        assert (tmp_path / "paused").exists()
        if what == "stop":
            assert last.poll() is None
            last.send_signal(signal.SIGCONT)
    except BaseException:
        last.kill()
        raise
    assert first.returncode == 0, errors
    report = json.loads(output.splitlines()[-1])
    assert report["accepted"] == 0
    assert report["weights"] == plain(settings, 0)
    assert "stopped" in report["last_decision"]
    assert errors.count("koopcast stops") == 1
    output, errors = last.communicate(timeout=60)
    if what == "stop":
        assert last.returncode == 0, errors
        assert json.loads(output.splitlines()[-1])["weights"] == plain(settings, 1)
        assert errors.count("koopcast stops") == 1


def test_refused_jumps_leave_fsdp_training_bit_identical(service: RunningService, tmp_path: Path) -> None:
    """FSDP keeps what it gathered for a probe's forward pass: training must not go on with that."""
    found = []
    for name, more in (("on", {"losses": [1.0, 2.0]}), ("off", {"attach": {"mode": "off"}})):
        (tmp_path / name).mkdir()
        settings = {"kind": "fsdp", "ranks": 2, "steps": 72, "lr": 0.01, **more}
        found.append(reported(started(service, tmp_path / name, settings)))
    hooked, plain_run = found
    assert hooked[0]["probes"] == hooked[1]["probes"] >= 4
    # The second refusal in a row makes all parts pause for a window, and begin another segment with the same snapshot.
    assert [event[:2] for event in hooked[0]["log"]] == [[20, False], [30, False], [70, False]]
    assert hooked[0]["dropped"] == hooked[1]["dropped"] == 0
    assert hooked[0]["weights"] == hooked[1]["weights"] == plain_run[0]["weights"]


@pytest.mark.parametrize("kind", ["replicas", "by-hand"])
def test_several_ranks_do_not_refine(service: RunningService, tmp_path: Path, kind: str) -> None:
    """Though one rank alone would: its probe has the gradient of its steps."""
    settings = {"kind": kind, "ranks": 2, "steps": 42, "momentum": 0.0, "attach": {"horizons": [20]}}
    first, second = reported(started(service, tmp_path, settings))
    assert first["log"] == [[20, True, 20.0], [40, True, 20.0]]
    assert not any("refined" in reason for reason in first["reasons"])
    assert first["probes"] == 2 * 2 + 1  # each time now and the candidate; the first jump was looked back on
    if kind == "replicas":
        assert first["weights"] == second["weights"]


def test_a_jump_is_undone_on_all_parts(service: RunningService, tmp_path: Path) -> None:
    settings = {
        "kind": "by-hand", "ranks": 2, "steps": 25, "losses": [10.0, 1.0, 100.0], "attach": {"horizons": [10]},
    }  # fmt: skip
    first, second = reported(started(service, tmp_path, settings))
    assert first["reasons"] == ["undone a stride after the jump: loss 10 to 100"]
    assert second["last_decision"] == "undone with the first rank"
    whole = plain({**settings, "kind": "replicas", "steps": 20}, 0)
    assert first["weights"] == second["weights"] == whole


def test_a_part_that_loses_its_trajectory_costs_all_a_window(service: RunningService, tmp_path: Path) -> None:
    settings = {
        "kind": "by-hand", "ranks": 2, "steps": 60, "fault": ["lose", "before step", 8],
        "attach": {"horizons": [10]},
    }  # fmt: skip
    first, second = reported(started(service, tmp_path, settings))
    steps = [step for step, *_ in first["log"]]
    assert steps[0] == 40  # a window after the meeting at which the ranks found out
    assert first["accepted"] >= 1
    assert first["weights"] == second["weights"]
    assert second["dropped"] >= 1


def test_a_lost_service_is_found_again_by_all_parts(tmp_path: Path) -> None:
    settings = {
        "kind": "by-hand", "ranks": 2, "steps": 1600, "fault": ["wait", "before step", 12],
        "attach": {"horizons": [10]},
    }  # fmt: skip
    with running_service("--http", "off") as service:
        ranks = started(service, tmp_path, settings)
        deadline = time.monotonic() + 60
        while not (tmp_path / "paused").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        service.restart()
        (tmp_path / "resume").touch()
        first, second = reported(ranks)
    assert first["accepted"] >= 1
    assert first["log"][0][0] > 20
    assert first["weights"] == second["weights"]
