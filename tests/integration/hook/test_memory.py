"""How much memory the hook takes of a trainer, beside what the trainer has itself."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import koopcast
from koopcast.hook import holding
from koopcast.hook.policy import exhaustive
from koopcast.hook.trial import Trial
from services import REPOSITORY, RunningService

WINDOW, EVERY = 4, 2
PARAMETERS = 1 << 20
UNIT = 4 * PARAMETERS
LITTLE = UNIT // 64
"""Tensors below are not counted: they do not grow with the model."""


def tensors_alive() -> float:
    """Bytes of all large tensors there are, in units of the parameters'."""
    found: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking every object what it is wakes some that are deprecated
        for one in gc.get_objects():
            if issubclass(type(one), torch.Tensor) and one.layout == torch.strided:
                storage = one.untyped_storage()
                with contextlib.suppress(RuntimeError):  # a compiler left it, without memory
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in found.values() if size > LITTLE) / UNIT


class Watched:
    """A trainer of weights that approach 1, and what was alive at each moment of an attempt."""

    def __init__(self, optimizer: str) -> None:
        self.model = nn.Linear(1024, PARAMETERS // 1024, bias=False)
        if optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.5)
        self.model.weight.grad = torch.empty_like(self.model.weight)
        self.train(2)
        self.before = tensors_alive()
        self.probes: list[float] = []
        self.alive: list[float] = []
        self.peak = 0.0

    def train(self, count: int) -> None:
        for _ in range(count):
            assert self.model.weight.grad is not None
            self.model.weight.grad.copy_(self.model.weight.detach()).sub_(1.0)
            self.optimizer.step()

    def look(self) -> float:
        self.note_peak()
        self.alive.append(tensors_alive() - self.before)
        tracemalloc.reset_peak()  # the list of all objects is as long as the process is old
        return self.alive[-1]

    def note_peak(self) -> None:
        self.peak = max(self.peak, tracemalloc.get_traced_memory()[1] / UNIT)

    def probe(self) -> float:
        """Of the candidates the second is the best, so that it is held while others are looked at.

        The first call of all is at the first snapshot, before there are any.
        """
        self.look()
        with torch.no_grad():
            self.probes.append(1.0 - self.model.weight.mean().item())
        return self.probes[-1] if len(self.probes) != 4 else self.probes[1] / 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("buffers", [1, 2])
def test_an_attempt_holds_four_times_the_parameters_at_most(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, optimizer: str, buffers: int, *, average: bool
) -> None:
    """Two displacements, and what undoing needs, for which it borrows the snapshot buffers: large models have one."""
    monkeypatch.setattr(holding, "_LARGE_BYTES", UNIT if buffers == 1 else UNIT + 1)
    run = Watched(optimizer)
    write = Trial._write

    def watched_write(trial: Trial, candidate: Any) -> bool:
        run.look()
        return write(trial, candidate)

    monkeypatch.setattr(Trial, "_write", watched_write)
    mean, beside = int(average), int(optimizer == "adam")
    tracemalloc.start()
    try:
        with koopcast.attach(
            run.model, run.optimizer, service.target, probe=run.probe, every=EVERY, average=average,
            horizons=[2, 3, 4, 5], operator=koopcast.Operator(window=WINDOW, rank=2), search=exhaustive,
            wait_seconds=30.0,
        ) as ahead:  # fmt: skip
            run.train(WINDOW * EVERY - 1)
            assert run.look() == buffers + mean
            run.peak = 0.0
            run.train(1)
            run.note_peak()
            arrays = run.peak
            assert ahead.stats().jumps_accepted == 1
            assert run.look() == 2 + mean + beside
            run.train(EVERY)
            assert ahead.stats().jumps_undone == 0
            run.train(1)
            assert run.look() == buffers + mean
    finally:
        tracemalloc.stop()
    assert len(run.probes) == 7  # at the first snapshot, now, four candidates, and a stride later
    assert max(run.alive) <= 4 + mean
    assert arrays < 3  # NumPy holds: the best displacement, the one that arrives, and chunks on their way


def test_refining_holds_256_mib_at_most(service: RunningService) -> None:
    """Besides what any attempt holds: here enough for 27 of 30 secant pairs, and for the points they come from."""
    run = Watched("sgd")
    curvatures = torch.logspace(-3, 0, PARAMETERS).view_as(run.model.weight)
    run.before = tensors_alive()

    def loss() -> torch.Tensor:
        return 0.5 * (curvatures * (run.model.weight - 1.0).square()).mean() * PARAMETERS

    def probe() -> torch.Tensor:
        run.look()
        return loss()

    def train(count: int) -> None:
        for _ in range(count):
            run.optimizer.zero_grad()
            torch.autograd.backward(loss())
            run.optimizer.step()

    tracemalloc.start()
    try:
        with koopcast.attach(
            run.model, run.optimizer, service.target, probe=probe, every=EVERY, horizons=[2, 3],
            operator=koopcast.Operator(window=WINDOW, rank=2), wait_seconds=30.0,
        ) as ahead:  # fmt: skip
            train(WINDOW * EVERY)
            (event,) = ahead.stats().log
    finally:
        tracemalloc.stop()
    assert "refined in" in event.reason
    assert 2 * 27 < max(run.alive) <= (256 << 20) / UNIT + 4


@pytest.mark.parametrize("optimizer", ["adam"])
def test_so_does_the_process(service: RunningService, optimizer: str) -> None:
    """With what does not grow with the model: chunks on their way, threads, heaps."""
    parameters, unmeasured = 32 << 20, 80 << 20
    paths = [str(REPOSITORY / part) for part in ("client", "server", "tests/support")]
    script = str(REPOSITORY / "tests/support/remembering.py")
    ended = subprocess.run(
        [sys.executable, script, service.target, optimizer, "single", str(parameters)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    held = json.loads(ended.stdout)
    slack = unmeasured / (4 * parameters)
    assert (held["accepted"], held["undone"], held["errors"]) == (1, 0, 0), held
    assert held["between"] <= 1 + slack, held
    assert held["at_the_jump"] <= 4 + slack, held
    assert held["after"] <= 3 + slack, held
    assert held["looking_back"] <= 4 + slack, held
