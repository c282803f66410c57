"""The learning rates and schedules that plain training was tuned to, task by task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from koopcast_server.demo.data import DemoError
from koopcast_server.demo.suite.optimizers import OPTIMIZERS

__all__ = ["Tuned", "UnknownOptimizer", "load_tuned"]

_TUNED: Final = Path(__file__).resolve().parents[1] / "tuned.json"


class UnknownOptimizer(DemoError):
    """No tuned rate is known for this optimizer; the message names those that have one."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best plain training that was found for a task and an optimizer.

    Attributes:
        optimizer: its name.
        learning_rate: at the start.
        schedule: "constant", or how it falls to zero over the budget: "linear", "cosine".
    """

    optimizer: str
    learning_rate: float
    schedule: str


def load_tuned(task: str, optimizer: str) -> Tuned:
    """The tuned rate and schedule, from `tuned.json`.

    Raises:
        UnknownOptimizer: this optimizer was not tuned on this task.
    """
    entries = json.loads(_TUNED.read_text(encoding="utf-8")).get(task, {})
    known = [name for name in OPTIMIZERS if name in entries]
    if optimizer not in known:
        raise UnknownOptimizer(f"the optimizer must be one of {', '.join(known)}, not {optimizer!r}")
    entry = entries[optimizer]
    return Tuned(optimizer, float(entry["learning_rate"]), str(entry["schedule"]))
