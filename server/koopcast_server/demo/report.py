"""The demo's figures: as JSON, as a table, as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import koopcast
from koopcast.hook import Stats
from koopcast_server.demo.training import Run

__all__ = [
    "ACCELERATED_COLOUR",
    "BASELINE_COLOUR",
    "TARGET_COLOUR",
    "Comparison",
    "compare",
    "print_report",
    "print_service_view",
    "refined_jumps",
    "write_json",
    "write_plot",
]

_LOOSER: Final = 1.05
BASELINE_COLOUR: Final = "#8a8f98"
ACCELERATED_COLOUR: Final = "#0b6e99"
TARGET_COLOUR: Final = "#c0392b"
_TAIL: Final = 1.3
"""The second panel shows losses up to so many times the target."""


@dataclass(frozen=True)
class Comparison:
    """Both runs in numbers. Steps are counted: optimizer steps plus evaluations of the probe, those of refinement too.

    Attributes:
        target_loss: what the plain run reaches with its whole budget.
        baseline_steps: when the plain run reaches it.
        accelerated_steps: when the run with jumps does; None if it never did.
        step_ratio: the first over the second; 0 if it never did.
        baseline_seconds, accelerated_seconds: the same in seconds, measured.
        final_loss_baseline, final_loss_accelerated: the last one within the same budget of counted steps.
        baseline_steps_within_5_percent, accelerated_steps_within_5_percent: to a target 5 % higher.
        optimizer_steps, probe_evaluations: what the counted steps of the run with jumps are made of, at its end.
        jumps_proposed, jumps_accepted, jumps_rejected, jumps_undone: at the end of the run; undone ones are among the
            rejected.
        jumps_refined: of the accepted ones, those that were refined.
        bytes_sent, bytes_received: snapshots up, displacements down.
        seconds_blocked: time the training thread waited for the service.
        learning_rate: the plain optimizer's best of the grid; both runs use it.
        grid: learning rate to the plain run's final loss.
        seed: of the first weights.
    """

    target_loss: float
    baseline_steps: int
    accelerated_steps: int | None
    step_ratio: float
    baseline_seconds: float
    accelerated_seconds: float | None
    final_loss_baseline: float
    final_loss_accelerated: float
    accuracy_baseline: float
    accuracy_accelerated: float
    baseline_steps_within_5_percent: int
    accelerated_steps_within_5_percent: int | None
    optimizer_steps: int
    probe_evaluations: int
    jumps_proposed: int
    jumps_accepted: int
    jumps_rejected: int
    jumps_undone: int
    jumps_refined: int
    bytes_sent: int
    bytes_received: int
    seconds_blocked: float
    learning_rate: float
    grid: dict[str, float]
    seed: int


def compare(baseline: Run, accelerated: Run, grid: dict[str, float], seed: int) -> Comparison:
    """The figures of two runs of the same budget; the second one has the hook's counts."""
    target = baseline.final_loss
    reached = baseline.first_at(target)
    faster = accelerated.first_at(target)
    looser = baseline.first_at(_LOOSER * target)
    looser_faster = accelerated.first_at(_LOOSER * target)
    stats = accelerated.stats
    if reached is None or looser is None or stats is None:
        raise ValueError("the baseline never reached its own final loss, or the other run had no hook")
    return Comparison(
        target_loss=target,
        baseline_steps=reached[0],
        accelerated_steps=faster[0] if faster else None,
        step_ratio=reached[0] / faster[0] if faster else 0.0,
        baseline_seconds=reached[1],
        accelerated_seconds=faster[1] if faster else None,
        final_loss_baseline=baseline.final_loss,
        final_loss_accelerated=accelerated.final_loss,
        accuracy_baseline=baseline.accuracy,
        accuracy_accelerated=accelerated.accuracy,
        baseline_steps_within_5_percent=looser[0],
        accelerated_steps_within_5_percent=looser_faster[0] if looser_faster else None,
        optimizer_steps=accelerated.optimizer_steps,
        probe_evaluations=stats.probe_evaluations,
        jumps_proposed=stats.jumps_proposed,
        jumps_accepted=stats.jumps_accepted,
        jumps_rejected=stats.jumps_rejected,
        jumps_undone=stats.jumps_undone,
        jumps_refined=refined_jumps(stats),
        bytes_sent=stats.bytes_sent,
        bytes_received=stats.bytes_received,
        seconds_blocked=stats.seconds_blocked,
        learning_rate=baseline.learning_rate,
        grid=grid,
        seed=seed,
    )


def write_json(comparison: Comparison, path: Path) -> None:
    """Writes the figures."""
    path.write_text(json.dumps(asdict(comparison), indent=2) + "\n")


def print_report(console: Console, comparison: Comparison, accelerated: Run) -> None:
    """Prints the comparison, and the job as the service saw it."""
    c = comparison
    table = Table(title=f"to loss {c.target_loss:.4f}, which plain training reaches with its whole budget")
    for column in ("", "plain", "with koopcast", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "steps (evaluations counted)",
        str(c.baseline_steps),
        _count(c.accelerated_steps),
        f"{c.step_ratio:.2f}x",
    )
    time_ratio = f"{c.baseline_seconds / c.accelerated_seconds:.2f}x" if c.accelerated_seconds else "-"
    seconds = f"{c.accelerated_seconds:.1f}" if c.accelerated_seconds else "never"
    table.add_row("seconds", f"{c.baseline_seconds:.1f}", seconds, time_ratio)
    loose, loose_faster = c.baseline_steps_within_5_percent, c.accelerated_steps_within_5_percent
    loose_ratio = f"{loose / loose_faster:.2f}x" if loose_faster else "-"
    table.add_row("steps to a 5 % higher loss", str(loose), _count(loose_faster), loose_ratio)
    table.add_row(
        "loss after the same budget", f"{c.final_loss_baseline:.4f}", f"{c.final_loss_accelerated:.4f}", ""
    )
    table.add_row(
        "accuracy on the training images", f"{c.accuracy_baseline:.2%}", f"{c.accuracy_accelerated:.2%}", ""
    )
    jumps = f"{c.jumps_proposed} / {c.jumps_accepted} / {c.jumps_undone}"
    table.add_row("jumps proposed / accepted / undone", "", jumps, "")
    table.add_row("accepted jumps that were refined", "", str(c.jumps_refined), "")
    table.add_row("optimizer steps + evaluations", "", f"{c.optimizer_steps} + {c.probe_evaluations}", "")
    table.add_row("sent / received", "", f"{c.bytes_sent / 1e6:.1f} / {c.bytes_received / 1e6:.1f} MB", "")
    table.add_row("waiting for the service", "", f"{c.seconds_blocked:.2f} s", "")
    console.print(table)
    print_service_view(console, accelerated.status)


def print_service_view(console: Console, status: koopcast.JobStatus | None) -> None:
    """Prints the job as the service saw it, which is told of predictions, and not of what refining made of them."""
    if status is None:
        return
    console.print(
        f"the service's view: job {status.name}, segment {status.segment}, {status.snapshots_accepted} snapshots "
        f"accepted, {status.predictions} predictions, {status.jumps_accepted} of them taken, "
        f"{status.jumps_rejected} refused, last answer in {1e3 * status.last_prediction_seconds:.1f} ms, "
        f"{status.memory_bytes / 2**20:.1f} MiB"
    )


def refined_jumps(stats: Stats) -> int:
    """Accepted jumps that were refined. The log says it in words only; a jump that was undone has other words."""
    return sum(event.accepted and "refined in" in event.reason for event in stats.log)


def write_plot(baseline: Run, accelerated: Run, comparison: Comparison, path: Path) -> None:
    """Writes both loss curves over counted steps, the jumps marked."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the backend was chosen

    figure, (whole, tail) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes in (whole, tail):
        _draw_curves(axes, baseline, accelerated, comparison)
    whole.set_yscale("log")
    whole.set_ylabel("training loss")
    whole.set_title("the whole run", loc="left", fontsize=10)
    lowest = min(*baseline.losses, *accelerated.losses)
    tail.set_ylim(lowest - 0.1 * (_TAIL * comparison.target_loss - lowest), _TAIL * comparison.target_loss)
    tail.set_title("the last of it, linear scale", loc="left", fontsize=10)
    tail.legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"5,000 MNIST digits, full batch, MLP 784-20-20-20-10: {comparison.step_ratio:.2f}x fewer steps to the loss "
        "that plain training ends with",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_curves(axes: Axes, baseline: Run, accelerated: Run, comparison: Comparison) -> None:
    label = f"SGD with momentum, best rate {comparison.learning_rate}, linear decay"
    axes.plot(baseline.steps, baseline.losses, color=BASELINE_COLOUR, label=label)
    axes.plot(
        accelerated.steps,
        accelerated.losses,
        color=ACCELERATED_COLOUR,
        drawstyle="steps-post",  # while a jump is probed and refined, training stands where it is
        label="the same with koopcast.attach",
    )
    axes.axhline(
        comparison.target_loss, color=TARGET_COLOUR, linewidth=0.8, linestyle=":", label="plain's final loss"
    )
    _mark_jumps(axes, accelerated)
    axes.set_xlabel("steps counted (optimizer steps + probe evaluations)")
    axes.spines[["top", "right"]].set_visible(False)


def _mark_jumps(axes: Axes, run: Run) -> None:
    """Marks where jumps landed: entry k of a run follows optimizer step k."""
    if run.stats is None:
        return
    log = [event for event in run.stats.log if event.step < len(run.steps)]
    for marker, label, landed in (
        ("v", "accepted jumps", [event.step for event in log if event.accepted]),
        ("x", "jumps undone a stride later", [event.step for event in log if event.undone]),
    ):
        if landed:
            steps, losses = [run.steps[i] for i in landed], [run.losses[i] for i in landed]
            axes.plot(steps, losses, marker, color=ACCELERATED_COLOUR, markersize=6, label=label)


def _count(steps: int | None) -> str:
    return "never" if steps is None else str(steps)
