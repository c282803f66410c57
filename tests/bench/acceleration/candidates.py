"""What a jump could land on: koopcast's predictions beside other extrapolations of the same window, judged by one probe.

    python tests/bench/acceleration/candidates.py [--workers 2] [--tasks NAME ...]

Plain training is left alone; every 100 steps each way to look ahead gets the last window of snapshots, and the probe tells the
loss where each of its candidates lands. What the best one is worth is counted in steps: how much later plain training had
a loss as low, less the evaluations that it took to find. Seed 1000, which the headline does not use.
Prints the table, and puts it into the page.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import koopcast
from acceleration.ablations import OPTIMIZERS
from acceleration.cells import read_tuned
from acceleration.extrapolations import Array, anderson, measured_momentum, slow_modes, straight
from acceleration.methods.weights import Tensors
from acceleration.service import local_service
from acceleration.tune import SEED
from koopcast.hook.policy import DEFAULT_OPERATORS, PROBED_HORIZON_STRIDES, choose_by_loss
from koopcast.hook.walk import Walk
from koopcast_server.demo.suite.optimizers import make_optimizer, make_scheduler
from koopcast_server.demo.tasks import TASKS, Problem
from recording import table, write_into

__all__ = ["Attempt", "candidate_table", "worth"]

PAGE: Final = Path(__file__).with_name("README.md")
STRIDE: Final = 10
WINDOW: Final = 10
_FINE_STRIDES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RIDGES: Final = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)

WAYS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "mean of the window": lambda path: path.mean(axis=0, keepdims=True),
    "straight line": lambda path: straight(path, PROBED_HORIZON_STRIDES),
    "measured momentum": lambda path: measured_momentum(path, PROBED_HORIZON_STRIDES),
    "slow modes only": lambda path: slow_modes(path, PROBED_HORIZON_STRIDES),
    "regularised nonlinear acceleration": lambda path: anderson(path, _RIDGES),
}
_WALK: Final = "**koopcast's operators, walked along**"
_EVERY: Final = "koopcast's operators, every horizon"
_SEARCH: Final = "koopcast's operators, a line search over nine horizons"


@dataclass(frozen=True)
class Attempt:
    """What one way came to at one moment.

    Attributes:
        way: its name.
        kind: of the task.
        step: of training.
        loss: the lowest of its candidates'.
        evaluations: of the probe that it took.
        saved: steps, see `worth`.
    """

    way: str
    kind: str
    step: int
    loss: float
    evaluations: int
    saved: int = 0


def worth(losses: Sequence[float], at: int, loss: float) -> int:
    """How many steps later plain training is at `loss` or below; all that are left where it never is.

    Args:
        losses: of plain training, a stride apart, the first one of step 0.
        at: index of now; 0 where the loss is no lower than now.
        loss: of the candidate.
    """
    if not loss < losses[at]:
        return 0
    there = next((index for index in range(at + 1, len(losses)) if losses[index] <= loss), len(losses) - 1)
    return (there - at) * STRIDE


def candidate_table(attempts: Sequence[Attempt]) -> str:
    """A line for every way; Markdown."""
    head = ["way", *(f"{kind}: {what}" for kind in ("deterministic", "stochastic") for what in _COLUMNS)]
    rows = []
    for way in dict.fromkeys(attempt.way for attempt in attempts):
        row = [way]
        for kind in ("deterministic", "stochastic"):
            found = [attempt for attempt in attempts if (attempt.way, attempt.kind) == (way, kind)]
            row += _columns(found)
        rows.append(row)
    return table(head, rows)


_COLUMNS: Final = ("steps saved", "evaluations", "net", "lower loss in")


def _columns(found: Sequence[Attempt]) -> list[str]:
    if not found:
        return ["–"] * len(_COLUMNS)
    saved = float(np.mean([attempt.saved for attempt in found]))
    spent = float(np.mean([attempt.evaluations for attempt in found]))
    better = float(np.mean([attempt.saved > 0 for attempt in found]))
    return [f"{saved:.1f}", f"{spent:.1f}", f"{saved - spent:.1f}", f"{100 * better:.0f} %"]


class _Judge:
    """Lands on candidates and asks the probe, and leaves training where it was."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tensors = Tensors.trained(problem.model)

    def now(self) -> float:
        return float(self._problem.probe().detach())

    def flat(self) -> Array:
        return self._tensors.flat().double().numpy()

    def at(self, weights: Array) -> float:
        flat = torch.from_numpy(weights).to(self._tensors.live[0])
        with self._tensors.swapped(self._tensors.pieces(flat)):
            loss = self.now()
        return loss if np.isfinite(loss) else float("inf")


def _run(task_name: str, optimizer_name: str, target: str) -> list[Attempt]:
    """All attempts of one plain training."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    task, tuned = TASKS[task_name], read_tuned()[task_name][optimizer_name]
    problem = task.make(SEED)
    trained = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(optimizer_name, trained, float(tuned["learning_rate"]))
    scheduler = make_scheduler(optimizer, str(tuned["schedule"]), task.budget_steps)
    judge, walk = _Judge(problem), Walk()
    path, losses, attempts = [judge.flat()], [judge.now()], list[Attempt]()
    with koopcast.connect(target) as client:
        spec = {"weights": koopcast.TensorSpec("float32", path[0].shape)}
        job = client.open_job(
            f"{task_name}-{optimizer_name}", spec, stride=STRIDE, operator=DEFAULT_OPERATORS[0]
        )
        for step in range(1, task.budget_steps + 1):
            optimizer.zero_grad()
            torch.autograd.backward(problem.batch_loss(step - 1))
            optimizer.step()
            scheduler.step()
            if step % STRIDE == 0:
                path.append(judge.flat())
                losses.append(judge.now())
                job.push(step, {"weights": path[-1].astype(np.float32)})
            if step % (STRIDE * WINDOW) == 0 and step < task.budget_steps:
                attempts += _attempts(task.kind, step, np.stack(path[-WINDOW:]), losses[-1], judge, job, walk)
        job.close()
    return [
        Attempt(a.way, a.kind, a.step, a.loss, a.evaluations, worth(losses, a.step // STRIDE, a.loss)) for a in attempts
    ]  # fmt: skip


def _attempts(
    kind: str, step: int, path: Array, loss: float, judge: _Judge, job: koopcast.Job, walk: Walk
) -> list[Attempt]:
    """What every way comes to with this window."""

    def landed(prediction: koopcast.Prediction) -> float:
        spent.append(1)
        return judge.at(path[-1] + prediction.displacement["weights"].astype(np.float64))

    found = []
    for way, strides in (
        (_WALK, PROBED_HORIZON_STRIDES),
        (_EVERY, PROBED_HORIZON_STRIDES),
        (_SEARCH, _FINE_STRIDES),
    ):
        spent: list[int] = []
        horizons = [float(STRIDE * count) for count in strides]
        predictions = [p for p in job.predict_ahead(horizons, operators=DEFAULT_OPERATORS) if p.moved]
        if way == _WALK:
            choice = choose_by_loss(predictions, loss, landed, walk)
        else:
            choice = choose_by_loss(predictions, loss, landed)
        best = choice.loss_after if choice.accepted and choice.loss_after is not None else loss
        found.append(Attempt(way, kind, step, best, len(spent)))
    for way, look_ahead in WAYS.items():
        candidates = look_ahead(path)
        best = min(judge.at(candidate) for candidate in candidates)
        found.append(Attempt(way, kind, step, best, len(candidates)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="NAME")
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    with local_service() as target, ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        runs = [
            pool.submit(_run, task, optimizer, target) for task in options.tasks for optimizer in OPTIMIZERS
        ]
        attempts = [attempt for run in runs for attempt in run.result()]
    text = candidate_table(attempts)
    print(text)
    if set(options.tasks) == set(TASKS):
        write_into(PAGE, "candidates", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
