"""What tests of refined jumps have in common: an exactly predictable trainer, and what was refined."""

from __future__ import annotations

from typing import Any

import torch

import koopcast
from services import RunningService
from trainers import LinearTraining

WINDOW, EVERY = 4, 5
JUMP = WINDOW * EVERY
SETTINGS: dict[str, Any] = {
    "every": EVERY, "operator": koopcast.Operator(window=WINDOW, rank=2), "horizons": [20], "wait_seconds": 10.0,
}  # fmt: skip


def attach(run: LinearTraining, service: RunningService, **more: Any) -> koopcast.Ahead:
    return koopcast.attach(
        run.model, run.optimizer, service.target, **{"probe": run.distance, **SETTINGS, **more}
    )


def advance(run: LinearTraining, count: int) -> LinearTraining:
    for _ in run.train(count):
        pass
    return run


def with_momentum() -> LinearTraining:
    run = LinearTraining()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.02, momentum=0.5)
    return run


def refined(stats: koopcast.hook.Stats) -> list[bool]:
    return ["refined" in event.reason for event in stats.log]
