"""A task of the suite from beginning to end: service, two runs, report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from koopcast_server.demo.data import DemoError
from koopcast_server.demo.progress import progress_bars
from koopcast_server.demo.service import demo_service
from koopcast_server.demo.suite.listing import DIGITS
from koopcast_server.demo.suite.report import (
    compare_runs,
    print_task_report,
    write_task_json,
    write_task_plot,
)
from koopcast_server.demo.suite.training import TaskRun, train_task
from koopcast_server.demo.suite.tuned import Tuned, load_tuned
from koopcast_server.demo.tasks import TASKS, Task

__all__ = ["UnknownTask", "run_task"]


class UnknownTask(DemoError):
    """There is no such task; the message names those there are."""


def run_task(name: str, optimizer: str, json_file: Path | None, plot: Path, seed: int) -> None:
    """Runs the comparison on one task: prints it, writes the plot and, where asked, the JSON file.

    Raises:
        DemoError: no such task or optimizer, its data are missing, or the service did not start.
    """
    if name not in TASKS:
        raise UnknownTask(f"the task must be one of {', '.join((DIGITS, *TASKS))}, not {name!r}")
    task, tuned = TASKS[name], load_tuned(name, optimizer)
    console = Console()
    problem = task.make(seed)  # before anything else: the data may be missing
    weights = sum(parameter.numel() for parameter in problem.model.parameters())
    console.print(
        f"[bold]koopcast demo[/bold]: {task.title}; {weights:,} weights, {task.kind} training with {optimizer}, "
        f"learning rate {tuned.learning_rate:g}, {tuned.schedule} (tuned for plain training) over {task.budget_steps} steps"
    )
    with demo_service() as (target, page):
        console.print(f"service on {target}, its page at {page}")
        with progress_bars(console) as bars:
            plain = _run(bars, "plain", task, tuned, seed, None)
            accelerated = _run(bars, "with koopcast", task, tuned, seed, target)
    comparison = compare_runs(task, tuned, seed, problem, plain, accelerated)
    print_task_report(console, comparison, accelerated)
    write_task_plot(plain, accelerated, comparison, task.title, plot)
    console.print(f"plot: {plot}")
    if json_file is not None:
        write_task_json(comparison, json_file)
        console.print(f"figures: {json_file}")


def _run(bars: Progress, title: str, task: Task, tuned: Tuned, seed: int, target: str | None) -> TaskRun:
    bar = bars.add_task(title, total=task.budget_steps, loss="")

    def progress(counted: float, loss: float) -> None:
        bars.update(bar, completed=min(round(counted), task.budget_steps), loss=f"{task.target} {loss:.4g}")

    return train_task(task, tuned, seed, target, progress)
