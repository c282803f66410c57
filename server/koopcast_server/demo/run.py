"""The demo from beginning to end: service, grid, two runs, report."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from koopcast_server.demo.data import load_digits
from koopcast_server.demo.progress import progress_bars
from koopcast_server.demo.report import compare, print_report, write_json, write_plot
from koopcast_server.demo.service import demo_service
from koopcast_server.demo.training import BUDGET_STEPS, LEARNING_RATES, Recipe, Run, Task, train

__all__ = ["run_demo"]


def run_demo(json_file: Path | None, plot: Path, seed: int) -> None:
    """Runs the demo: prints the comparison, writes the plot and, where asked, the JSON file.

    Raises:
        DemoError: the digits are missing, or the service did not start.
    """
    console = Console()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # the service has the other half
    task = Task(*load_digits())
    console.print(
        f"[bold]koopcast demo[/bold]: {len(task.images):,} MNIST digits, full batch, MLP 784-20-20-20-10, SGD with "
        f"momentum and linear decay over {BUDGET_STEPS} steps"
    )
    with demo_service() as (target, page):
        console.print(f"service on {target}, its page at {page}")
        with progress_bars(console) as bars:
            grid = {
                rate: _run(bars, f"plain, learning rate {rate}", task, rate, seed, None)
                for rate in LEARNING_RATES
            }
            rate = min(grid, key=lambda rate: grid[rate].rank_loss)
            plain = _run(bars, f"plain, learning rate {rate}, timed", task, rate, seed, None)
            accelerated = _run(bars, f"with koopcast, learning rate {rate}", task, rate, seed, target)
    losses = {str(rate): run.final_loss for rate, run in grid.items()}
    console.print(
        "plain final loss by learning rate: "
        + ", ".join(f"{rate}: {loss:.4f}" for rate, loss in losses.items())
    )
    comparison = compare(plain, accelerated, losses, seed)
    print_report(console, comparison, accelerated)
    write_plot(plain, accelerated, comparison, plot)
    console.print(f"plot: {plot}")
    if json_file is not None:
        write_json(comparison, json_file)
        console.print(f"figures: {json_file}")


def _run(bars: Progress, title: str, task: Task, rate: float, seed: int, target: str | None) -> Run:
    bar = bars.add_task(title, total=BUDGET_STEPS, loss="")
    return train(
        task,
        Recipe(rate, seed),
        target,
        lambda counted, loss: bars.update(bar, completed=min(counted, BUDGET_STEPS), loss=f"loss {loss:.4f}"),
    )
