"""What each lever of the jump policy is worth: koopcast with one of its arguments changed, beside its defaults.

    python tests/bench/acceleration/ablations.py [--workers 2] [--variants NAME ...]

Seed 1000, on which learning rates were tuned and which the headline does not use: what is chosen here is not judged here.
Prints the table, and puts it into the page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from acceleration.cells import read_tuned
from acceleration.methods import METHODS
from acceleration.methods.ours import ours_but
from acceleration.score import HARM, Score, scores_of
from acceleration.service import local_service
from acceleration.training import Cell, train_cell
from acceleration.tune import SEED
from koopcast import Operator
from koopcast_server.demo.tasks import TASKS
from recording import table, write_into

__all__ = ["OPTIMIZERS", "VARIANTS", "ablation_table"]

PAGE: Final = Path(__file__).with_name("README.md")
RESULTS: Final = Path(__file__).with_name("results") / "ablations.json"
OPTIMIZERS: Final = ("adamw", "sgd-momentum")

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "defaults": {},
    "no refinement": {"refine": 0},
    "refinement: at most 20 evaluations": {"refine": 20},
    "refinement: at most 400 evaluations": {"refine": 400},
    "momentum kept after refining": {"optimizer_state": "keep"},
    "no look back": {"watch": False},
    "snapshots: means over the stride": {"average": True},
    "stride 5": {"every": 5},
    "stride 20": {"every": 20},
    "windows of 6": {
        "operators": [Operator(window=6, rank=4, ridge=1e-4), Operator(window=6, rank=5, ridge=1e-6)]
    },
    "one operator, rank and ridge automatic": {"operator": Operator(window=10)},
    "rank and ridge by back-test": {"operator": Operator(window=10, rank="backtest", ridge="backtest")},
    "an operator for each tensor": {"operator": Operator(window=10, partition="tensor")},
    "total least squares": {"operator": Operator(window=10, debias="total-least-squares")},
    "horizons up to 16 strides": {"horizons": [20.0, 40.0, 80.0, 160.0]},
    "clock: steps, not summed rates": {"learning_rate": None},
}
"""What is changed: arguments of `koopcast.attach`."""


def ablation_table(scores: Mapping[str, Sequence[Score]]) -> str:
    """Geometric means over the cells of each variant, the deterministic tasks and the others apart; Markdown."""
    head = [
        "changed",
        "deterministic: steps 50 %",
        "75 %",
        "100 %",
        "quality",
        "stochastic: steps 75 %",
        "quality",
        "cells below 0.97",
    ]
    rows = []
    for name, found in scores.items():
        row = [f"**{name}**" if name == "defaults" else name]
        for kind, shares in (("deterministic", (50, 75, 100)), ("stochastic", (75,))):
            here = [score for score in found if TASKS[score.task].kind == kind]
            row += [_mean([score.steps[share] for score in here]) for share in shares]
            row.append(_mean([score.quality for score in here]))
        row.append(str(sum(score.steps[75] < HARM for score in found)))
        rows.append(row)
    return table(head, rows)


def _mean(ratios: Sequence[float]) -> str:
    return f"{float(np.exp(np.mean(np.log(ratios)))):.2f}" if ratios else "-"


def _run(cell: Cell, variant: str, service: str) -> dict[str, Any]:
    methods = cast("dict[str, Any]", METHODS)
    methods[cell.method] = ours_but(**VARIANTS[variant]) if variant else methods["plain"]
    return train_cell(cell, service)


def _cells(tasks: Sequence[str], method: str) -> list[Cell]:
    tuned = read_tuned()
    return [
        Cell(
            task, optimizer, method, SEED, False,
            float(tuned[task][optimizer]["learning_rate"]), str(tuned[task][optimizer]["schedule"]), TASKS[task].budget_steps,
        )
        for task in tasks
        for optimizer in OPTIMIZERS
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (2)")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=[name for name in TASKS if name != "char-gpt"],
        metavar="NAME",
    )
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(local_service())
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(options.workers, mp_context=context))
        plain = [pool.submit(_run, cell, "", service) for cell in _cells(options.tasks, "plain")]
        runs = {
            name: [pool.submit(_run, cell, name, service) for cell in _cells(options.tasks, "ours")]
            for name in options.variants
        }
        reference = [run.result() for run in plain]
        scores: dict[str, list[Score]] = {}
        for name, variant in runs.items():
            records = [*reference, *(run.result() for run in variant)]
            scores[name] = [score for score in scores_of(records) if score.method == "ours"]
            print(ablation_table({name: scores[name]}).splitlines()[-1], flush=True)
    kept = {
        name: [[s.task, s.optimizer, s.steps, s.quality] for s in found] for name, found in scores.items()
    }
    RESULTS.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
    write_into(PAGE, "ablations", ablation_table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
