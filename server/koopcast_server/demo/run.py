"""The demo from beginning to end: service, grid, two runs, report."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from koopcast_server.demo.data import DemoError, load_digits
from koopcast_server.demo.report import compare, print_report, write_json, write_plot
from koopcast_server.demo.training import BUDGET_STEPS, LEARNING_RATES, Recipe, Run, Task, train

__all__ = ["run_demo"]


_PRINTED_LINES = 3
"""What `koopcast serve` prints when it is ready."""


class ServiceFailed(DemoError):
    """The demo's service did not start."""


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
    with _service() as (target, page):
        console.print(f"service on {target}, its page at {page}")
        with _bars(console) as bars:
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


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        console=console,
    )


@contextlib.contextmanager
def _service() -> Iterator[tuple[str, str]]:
    """A service process on loopback: its gRPC address and the URL of its page."""
    command = [
        sys.executable,
        "-m",
        "koopcast_server",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(  # noqa: S603  # our own command
        [*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            printed = "".join(line for _, line in zip(range(_PRINTED_LINES), process.stdout, strict=False))
            grpc_address = re.search(r"^gRPC\s+(\S+)$", printed, re.MULTILINE)
            http_address = re.search(r"^HTTP\s+(\S+)$", printed, re.MULTILINE)
            if grpc_address is None or http_address is None:
                raise ServiceFailed(f"the demo's service did not start: {printed or 'see above'}")
            yield grpc_address[1], http_address[1]
        finally:
            process.terminate()
