"""A task's figures: as JSON, as a table, as a plot."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from koopcast_server.demo.report import (
    ACCELERATED_COLOUR,
    BASELINE_COLOUR,
    TARGET_COLOUR,
    print_service_view,
    refined_jumps,
)
from koopcast_server.demo.suite.targets import Target, best_within, far_apart, targets_of
from koopcast_server.demo.suite.training import TaskRun
from koopcast_server.demo.suite.tuned import Tuned
from koopcast_server.demo.tasks import Problem, Task

__all__ = ["TaskComparison", "compare_runs", "print_task_report", "write_task_json", "write_task_plot"]

_SHOWN_FROM: Final = 0.05
"""Of the budget: losses much above what plain training has by then are not shown, so that the targets can be told apart."""
_TOP: Final = 1.2


@dataclass(frozen=True)
class TaskComparison:
    """Both runs in numbers; the plain one is the baseline.

    Attributes:
        task: its name.
        kind: "deterministic" or "stochastic".
        target: what the losses are: "validation loss", "residual loss".
        optimizer, learning_rate, schedule: of both runs, tuned for the plain one.
        seed: of the first weights and the order of batches.
        budget_steps: of each run.
        targets: how soon each reaches the plain run's best losses.
        best_loss_baseline, best_loss_accelerated: within the budget.
        quality_ratio: the first over the second.
        baseline_diverged, accelerated_diverged: whether a run ended at a loss that is not finite.
        optimizer_steps, probe_evaluations, on_jump_evaluations: of the run with koopcast.
        probe_cost_steps, on_jump_cost_steps: what one of them costs. Unit: steps.
        counted_steps: all of these together, at its end.
        jumps_proposed, jumps_accepted, jumps_undone: undone ones are not among the accepted.
        jumps_refined: of the accepted ones, those that were refined.
        predictability, gradient_agreement: as in `koopcast.hook.Stats`.
        seconds_in_hook, seconds_blocked: likewise; the first includes probes and refinement.
        bytes_sent, bytes_received: likewise.
        last_decision: likewise.
    """

    task: str
    kind: str
    target: str
    optimizer: str
    learning_rate: float
    schedule: str
    seed: int
    budget_steps: int
    targets: list[Target]
    best_loss_baseline: float
    best_loss_accelerated: float
    quality_ratio: float
    baseline_diverged: bool
    accelerated_diverged: bool
    optimizer_steps: int
    probe_evaluations: int
    on_jump_evaluations: int
    probe_cost_steps: float
    on_jump_cost_steps: float
    counted_steps: float
    jumps_proposed: int
    jumps_accepted: int
    jumps_undone: int
    jumps_refined: int
    predictability: float | None
    gradient_agreement: float | None
    seconds_in_hook: float
    seconds_blocked: float
    bytes_sent: int
    bytes_received: int
    last_decision: str


def compare_runs(
    task: Task, tuned: Tuned, seed: int, problem: Problem, plain: TaskRun, accelerated: TaskRun
) -> TaskComparison:
    """The figures of two runs of the same budget; the second one has the hook's counts."""
    stats = accelerated.stats
    if stats is None:
        raise ValueError("the second run had no hook")
    best = best_within(plain, task.budget_steps), best_within(accelerated, task.budget_steps)
    return TaskComparison(
        task=task.name,
        kind=task.kind,
        target=task.target,
        **asdict(tuned),
        seed=seed,
        budget_steps=task.budget_steps,
        targets=targets_of(plain, accelerated),
        best_loss_baseline=best[0],
        best_loss_accelerated=best[1],
        quality_ratio=best[0] / best[1],
        baseline_diverged=plain.diverged,
        accelerated_diverged=accelerated.diverged,
        optimizer_steps=len(accelerated.counted_after),
        probe_evaluations=stats.probe_evaluations,
        on_jump_evaluations=stats.on_jump_evaluations,
        probe_cost_steps=problem.probe_cost_steps,
        on_jump_cost_steps=problem.adapt_cost_steps,
        counted_steps=accelerated.counted_steps,
        jumps_proposed=stats.jumps_proposed,
        jumps_accepted=stats.jumps_accepted,
        jumps_undone=stats.jumps_undone,
        jumps_refined=refined_jumps(stats),
        predictability=stats.predictability,
        gradient_agreement=stats.gradient_agreement,
        seconds_in_hook=stats.seconds_in_hook,
        seconds_blocked=stats.seconds_blocked,
        bytes_sent=stats.bytes_sent,
        bytes_received=stats.bytes_received,
        last_decision=stats.last_decision,
    )


def write_task_json(comparison: TaskComparison, path: Path) -> None:
    """Writes the figures."""
    path.write_text(json.dumps(asdict(comparison), indent=2) + "\n")


def print_task_report(console: Console, comparison: TaskComparison, accelerated: TaskRun) -> None:
    """Prints the comparison, what is counted, and the job as the service saw it."""
    c = comparison
    table = Table(
        title=f"to the best {c.target} that plain training has within 50, 75 and 100 % of its budget"
    )
    for column in ("", "plain", "with koopcast", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for one in c.targets:
        steps = "never" if one.accelerated_steps is None else f"{one.accelerated_steps:.0f}"
        name = f"steps to {one.loss:.4g} ({one.share_percent} %)"
        table.add_row(name, f"{one.baseline_steps:.0f}", steps, f"{one.step_ratio:.2f}x")
    for one in c.targets:
        seconds = "never" if one.accelerated_seconds is None else f"{one.accelerated_seconds:.2f}"
        table.add_row(
            f"seconds to {one.loss:.4g}", f"{one.baseline_seconds:.2f}", seconds, f"{one.time_ratio:.2f}x"
        )
    best = f"{c.best_loss_baseline:.4g}", f"{c.best_loss_accelerated:.4g}"
    table.add_row(f"best {c.target} after {c.budget_steps} steps", *best, f"{c.quality_ratio:.2f}x")
    for name, value in _counts(c).items():
        table.add_row(name, "", value, "")
    console.print(table)
    if any(one.accelerated_steps is None for one in c.targets):
        console.print("never: the ratio is that of losing the whole budget and training plainly after it")
    for diverged, name in ((c.baseline_diverged, "plain"), (c.accelerated_diverged, "with koopcast")):
        if diverged:
            console.print(
                f"[red]{name}: the loss became infinite or no number, and the run ended there[/red]"
            )
    console.print(_counting(c))
    console.print(f"the last attempt: {c.last_decision}")
    print_service_view(console, accelerated.status)


def _counts(c: TaskComparison) -> dict[str, str]:
    def known(value: float | None) -> str:
        return "not known" if value is None else f"{value:.2f}"

    return {
        "jumps proposed / accepted / undone": f"{c.jumps_proposed} / {c.jumps_accepted} / {c.jumps_undone}",
        "accepted jumps that were refined": str(c.jumps_refined),
        "predictability, gradient agreement": f"{known(c.predictability)}, {known(c.gradient_agreement)}",
        "optimizer steps + evaluations": f"{c.optimizer_steps} + {c.counted_steps - c.optimizer_steps:g}",
        "in the hook / waiting for the service": f"{c.seconds_in_hook:.2f} / {c.seconds_blocked:.2f} s",
        "sent / received": f"{c.bytes_sent / 1e6:.1f} / {c.bytes_received / 1e6:.1f} MB",
    }


def _counting(c: TaskComparison) -> str:
    """What is counted, in words."""
    counted = [
        f"{c.optimizer_steps} optimizer steps",
        f"{c.probe_evaluations} evaluations of the probe (as {c.probe_cost_steps:g} each)",
    ]
    if c.on_jump_cost_steps:
        counted.append(
            f"{c.on_jump_evaluations} recomputations of BatchNorm's statistics (as {c.on_jump_cost_steps:g} each)"
        )
    return f"counted: {', '.join(counted)}. Not counted, nor timed: the evaluations of the {c.target}"


def write_task_plot(
    plain: TaskRun, accelerated: TaskRun, comparison: TaskComparison, title: str, path: Path
) -> None:
    """Writes both curves over counted steps and over seconds; the targets and the jumps are marked."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the backend was chosen

    c = comparison
    figure, (over_steps, over_seconds) = plt.subplots(
        1, 2, figsize=(11, 4.6), sharey=True, layout="constrained"
    )
    label = f"{c.optimizer}, tuned: {c.learning_rate:g}, {c.schedule}"
    for axes, at in ((over_steps, "counted"), (over_seconds, "seconds")):
        axes.plot(*_corners(plain, at), color=BASELINE_COLOUR, label=label)
        axes.plot(*_corners(accelerated, at), color=ACCELERATED_COLOUR, label="the same with koopcast.attach")
        for i, one in enumerate(c.targets):
            axes.axhline(
                one.loss, color=TARGET_COLOUR, linewidth=0.8, linestyle=":", label="" if i else "targets"
            )
        axes.set_yscale("log")
        axes.set_ylim(top=_TOP * best_within(plain, _SHOWN_FROM * c.budget_steps))
        axes.spines[["top", "right"]].set_visible(False)
    _mark_jumps(over_steps, accelerated)
    over_steps.set_ylabel(c.target)
    over_steps.set_xlabel("steps counted (optimizer steps + evaluations)")
    over_seconds.set_xlabel("seconds, evaluations of the curve left out")
    over_steps.legend(frameon=False, fontsize=9)
    ratios = ", ".join(f"{one.step_ratio:.2f}x" for one in c.targets)
    figure.suptitle(f"{title}\nfewer steps to the targets: {ratios}", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _corners(run: TaskRun, name: str) -> tuple[list[float], list[float]]:
    """The curve over `counted` or `seconds`: level while many evaluations are made at once, as targets are counted."""
    values = getattr(run, name)
    at, loss = values[:1], run.loss[:1]
    for i in range(1, len(run.loss)):
        if far_apart(run, i):
            at, loss = [*at, values[i]], [*loss, run.loss[i - 1]]
        at, loss = [*at, values[i]], [*loss, run.loss[i]]
    return at, loss


def _mark_jumps(axes: Axes, run: TaskRun) -> None:
    """Marks the first evaluation after each jump."""
    if run.stats is None:
        return
    log = [event for event in run.stats.log if event.step <= len(run.counted_after)]
    for marker, label, jumps in (
        ("v", "accepted jumps", [event for event in log if event.accepted]),
        ("x", "jumps undone a stride later", [event for event in log if event.undone]),
    ):
        at = [bisect_left(run.counted, run.counted_after[event.step - 1]) for event in jumps]
        shown = [i for i in at if i < len(run.loss)]
        if shown:
            points = [run.counted[i] for i in shown], [run.loss[i] for i in shown]
            axes.plot(*points, marker, color=ACCELERATED_COLOUR, markersize=6, label=label)
