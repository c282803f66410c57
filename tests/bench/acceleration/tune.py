"""Tunes learning rate and schedule of every plain optimizer on every task; writes koopcast_server/demo/tuned.json.

    python tests/bench/acceleration/tune.py [--tasks pinn-burgers ...] [--optimizers adamw ...] [--workers 2] [--again]

Rates are 1, 2, 5, 10, …, and the search starts at the optimizer's usual one. Under linear decay it goes on until the best
rate has two worse ones on either side; under the other schedules it starts at that rate and goes on until the best has
one. For optimizers that are not of the headline it is one, and none: the best rate alone. A run's score is its best target loss at any of 32 evaluations, which is what the suite's targets
are made of. The seed, 1000, is one that nothing else uses. What is in the file already is not tuned again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where this package lies: it is not installed

from acceleration.score import HEADLINE
from koopcast_server import demo
from koopcast_server.demo.suite.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    make_scheduler,
)
from koopcast_server.demo.tasks import TASKS, DataMissing, Task

__all__ = ["SEED", "TUNED", "plain_loss", "rate", "search"]

TUNED: Final = Path(demo.__file__).parent / "tuned.json"
SEED: Final = 1000
_FIRST: Final = "linear"
_EVALUATIONS: Final = 32
_MOST_RATES: Final = 12
"""Rates tried under one schedule at most."""
_USUAL_RATES: Final[Mapping[str, int]] = {
    "sgd-momentum": -5,
    "adamw": -7,
    "adadelta": 1,
    "sgd": -2,
    "adagrad": -4,
    "adam": -7,
}
"""Where the search starts, as an index of `rate`."""

Grid = list[tuple[float, str, float]]
"""Everything tried: learning rate, schedule, best target loss."""


def rate(index: int) -> float:
    """Learning rates in steps of 2 to 2.5: … 0.5, 1, 2, 5, 10 …; 1 is at index 0."""
    decade, place = divmod(index, 3)
    return float(f"{(1, 2, 5)[place]}e{decade}")


def plain_loss(task: Task, optimizer_name: str, learning_rate: float, schedule: str) -> float:
    """Best target loss of a plain run, the one before the first step included; a run that diverges ends there."""
    problem = task.make(SEED)
    optimizer = make_optimizer(optimizer_name, problem.model.parameters(), learning_rate)
    scheduler = make_scheduler(optimizer, schedule, task.budget_steps)
    evaluated = {round(task.budget_steps * (i + 1) / _EVALUATIONS) for i in range(_EVALUATIONS)}
    best = problem.target_loss()
    for step in range(task.budget_steps):
        optimizer.zero_grad()
        problem.batch_loss(step).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        scheduler.step()
        if step + 1 in evaluated:
            loss = problem.target_loss()
            if not math.isfinite(loss):
                break
            best = min(best, loss)
    return float(f"{best:.4g}")


def search(
    score: Callable[[int, str], float], start: int, reaches: tuple[int, int]
) -> list[tuple[int, str, float]]:
    """Try rates under linear decay, then, from the best of them, under the other schedules.

    Args:
        score: gives the loss of a rate's index under a schedule.
        start: index of the first rate.
        reaches: how many worse rates the best is to have on either side, under linear decay and under the others.

    Returns:
        (index, schedule, loss), in the order in which they were tried.
    """
    tried: list[tuple[int, str, float]] = []
    for schedule in (_FIRST, *(name for name in SCHEDULES if name != _FIRST)):
        reach = reaches[schedule != _FIRST]
        losses: dict[int, float] = {}
        best = start
        while len(losses) < _MOST_RATES:
            nearest_first = sorted(range(best - reach, best + reach + 1), key=lambda index: abs(index - best))
            missing = [index for index in nearest_first if index not in losses]
            if not missing:
                break
            losses[missing[0]] = score(missing[0], schedule)
            tried.append((missing[0], schedule, losses[missing[0]]))
            best = min(losses, key=lambda index: losses[index])
        start = best if schedule == _FIRST else start
    return tried


def tune(task_name: str, optimizer_name: str) -> tuple[str, str, dict[str, Any]]:
    """One entry of the file, and whose it is.

    Raises:
        DataMissing: the task's data are not there.
    """
    task = TASKS[task_name]
    tried = search(
        lambda index, schedule: plain_loss(task, optimizer_name, rate(index), schedule),
        _USUAL_RATES[optimizer_name],
        (2, 1) if optimizer_name in HEADLINE else (1, 0),
    )
    grid: Grid = [(rate(index), schedule, loss) for index, schedule, loss in tried]
    learning_rate, schedule, loss = min(grid, key=lambda entry: entry[2])
    entry = {"learning_rate": learning_rate, "schedule": schedule, "loss": loss, "grid": sorted(grid)}
    return task_name, optimizer_name, entry


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What is tuned already: task to optimizer to entry."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(tuned: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the file anew, a line for each optimizer, in the suite's order."""
    blocks = []
    for task in (name for name in TASKS if name in tuned):
        lines = [
            f"    {json.dumps(name)}: {json.dumps(tuned[task][name])}"
            for name in OPTIMIZERS
            if name in tuned[task]
        ]
        blocks.append(f"  {json.dumps(task)}: {{\n" + ",\n".join(lines) + "\n  }")
    fresh = path.with_suffix(".new")
    fresh.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    fresh.replace(path)


def _prepare_worker() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Tune what is not tuned yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="tune also what is tuned already")
    parser.add_argument("--output", type=Path, default=TUNED)
    arguments = parser.parse_args()
    tuned = read(arguments.output)
    wanted = [
        (task, optimizer)
        for optimizer in sorted(arguments.optimizers, key=lambda name: name not in HEADLINE)
        for task in arguments.tasks
        if arguments.again or optimizer not in tuned.get(task, {})
    ]
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, initializer=_prepare_worker) as pool:
        futures = [pool.submit(tune, *cell) for cell in wanted]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    task, optimizer, entry = future.result()
                except DataMissing as error:
                    print(f"skipped: {error}", flush=True)
                    continue
                tuned.setdefault(task, {})[optimizer] = entry
                write(tuned, arguments.output)
                print(
                    f"{done}/{len(wanted)} {time.perf_counter() - started:5.0f} s  {task}, {optimizer}: "
                    f"{entry['learning_rate']:g} {entry['schedule']}, loss {entry['loss']:g} "
                    f"({len(entry['grid'])} runs)",
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
