"""Which runs the table has, which of them are done, and where their records are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from acceleration.methods import METHODS
from acceleration.score import HEADLINE
from acceleration.training import Cell
from koopcast_server.demo.suite.optimizers import OPTIMIZERS
from koopcast_server.demo.tasks import TASKS

__all__ = [
    "RESULTS",
    "SEEDS",
    "TUNED",
    "Choice",
    "Key",
    "Record",
    "Results",
    "key_of",
    "plan_cells",
    "read_tuned",
    "untuned",
]

RESULTS: Final = Path(__file__).with_name("results")
TUNED: Final = Path(__file__).resolve().parents[3] / "server/koopcast_server/demo/tuned.json"
SEEDS: Final = (0, 1, 2, 3, 4)
_TIMED_FIRST: Final = ("plain", "ours", "linear", "lawa")

Record = Mapping[str, Any]
Key = tuple[str, str, str, int, bool]
"""Task, optimizer, method, seed, timed."""
Tuned = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Choice:
    """Which part of the table.

    Attributes:
        tasks: by name.
        optimizers: by name; those that are not in the headline run at seed 0 only.
        methods: by name.
        seeds: of the headline optimizers.
        timed: whether timed cells are run too: headline optimizers at seed 0.
        budget_share: of every task's budget.
    """

    tasks: Sequence[str] = field(default_factory=lambda: tuple(TASKS))
    optimizers: Sequence[str] = field(default_factory=lambda: tuple(OPTIMIZERS))
    methods: Sequence[str] = field(default_factory=lambda: tuple(METHODS))
    seeds: Sequence[int] = SEEDS
    timed: bool = True
    budget_share: float = 1.0


def read_tuned(path: Path = TUNED) -> Tuned:
    """Learning rates and schedules: task to optimizer to ``"learning_rate"`` and ``"schedule"``; none without the file."""
    found: Tuned = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def untuned(choice: Choice, tuned: Tuned) -> list[str]:
    """Tasks with the optimizers that have no learning rate yet, in words."""
    lacking = {
        task: [optimizer for optimizer in choice.optimizers if optimizer not in tuned.get(task, {})]
        for task in choice.tasks
    }
    return [f"{task} with {', '.join(optimizers)}" for task, optimizers in lacking.items() if optimizers]


def plan_cells(choice: Choice, tuned: Tuned) -> list[Cell]:
    """The cells in the order they are run: all of seed 0 before seed 1, untimed ones before timed ones.

    What is not tuned is left out.
    """
    pairs = [
        (task, optimizer)
        for task in choice.tasks
        for optimizer in choice.optimizers
        if optimizer in tuned.get(task, {})
    ]

    def cell(task: str, optimizer: str, method: str, seed: int, *, timed: bool) -> Cell:
        entry = tuned[task][optimizer]
        budget = max(1, round(TASKS[task].budget_steps * choice.budget_share))
        rate, schedule = float(entry["learning_rate"]), str(entry["schedule"])
        return Cell(task, optimizer, method, seed, timed, rate, schedule, budget)

    untimed = [
        cell(task, optimizer, method, seed, timed=False)
        for seed in choice.seeds
        for task, optimizer in pairs
        if seed == SEEDS[0] or optimizer in HEADLINE
        for method in choice.methods
    ]
    if not choice.timed or SEEDS[0] not in choice.seeds:
        return untimed
    first = [method for method in _TIMED_FIRST if method in choice.methods]
    later = [method for method in choice.methods if method not in first]
    return untimed + [
        cell(task, optimizer, method, SEEDS[0], timed=True)
        for methods in (first, later)
        for task, optimizer in pairs
        if optimizer in HEADLINE
        for method in methods  # beside each other: the machine may be slower an hour later
    ]


def key_of(cell: Cell) -> Key:
    """What tells a cell from others."""
    return cell.task, cell.optimizer, cell.method, cell.seed, cell.timed


class Results:
    """Records on disk, a file a task, a line a cell: written at once, so that a crash costs the runs under way only.

    One writer at a time.
    """

    def __init__(self, folder: Path = RESULTS) -> None:
        """Keep them in `folder`, which is made if need be."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, codes: Mapping[Key, str]) -> dict[Key, Record]:
        """Records of the cells of `codes` that were made by this code, the latest of each.

        Args:
            codes: cell to the hash of its code as it is now.
        """
        found: dict[Key, Record] = {}
        for task in dict.fromkeys(key[0] for key in codes):
            for record in self._lines(task):
                key = _key(record)
                if codes.get(key) == record.get("code"):
                    found[key] = record
        return found

    def add(self, record: Record) -> None:
        """Write one more, and see that it is on the disk."""
        path = self._path(str(record["task"]))
        line = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
        with path.open("a+b") as file:
            if file.tell() and not _ends_line(path):
                file.write(b"\n")  # a line that a crash cut short stays alone
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def compact(self, codes: Mapping[Key, str]) -> None:
        """Rewrite the files of the tasks in `codes` without what is stale or double.

        Cells that `codes` does not know keep their latest record.
        """
        for task in dict.fromkeys(key[0] for key in codes):
            path = self._path(task)
            if not path.exists():
                continue
            kept = {
                _key(record): record
                for record in self._lines(task)
                if codes.get(_key(record)) in (None, record.get("code"))
            }
            lines = [
                json.dumps(kept[key], separators=(",", ":"), allow_nan=False) + "\n" for key in sorted(kept)
            ]
            partial = path.with_suffix(".part")
            partial.write_text("".join(lines), encoding="utf-8")
            partial.replace(path)

    def _path(self, task: str) -> Path:
        return self._folder / f"{task}.jsonl"

    def _lines(self, task: str) -> Iterable[Record]:
        path = self._path(task)
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut short by a crash
                continue
            if isinstance(record, dict) and "task" in record:
                yield record


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _key(record: Record) -> Key:
    return record["task"], record["optimizer"], record["method"], record["seed"], record["timed"]
