"""The figures as Markdown, written between the markers of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.stats import spearmanr

from acceleration.costs import figure, harm_table, overhead_table
from acceleration.score import (
    KINDS,
    METHODS,
    OURS,
    PLAIN,
    SHOWN_SHARE,
    Key,
    Plan,
    Record,
    Score,
    scores_of,
)
from acceleration.summary import (
    Summary,
    indices_and_gains,
    quality,
    seconds_to,
    steps_to,
    summarise,
    wins,
)
from koopcast_server.demo.tasks.task import Task
from recording import table, write_into

__all__ = [
    "PAGE",
    "headline_table",
    "optimizer_table",
    "predictability_text",
    "readme_headline",
    "suite_table",
    "task_table",
    "wins_text",
    "write_page",
]

PAGE: Final = Path(__file__).with_name("README.md")
_NOTHING: Final = "–"
_STEPS: Final = steps_to(SHOWN_SHARE)
_SECONDS: Final = seconds_to(SHOWN_SHARE)


def write_page(
    records: Iterable[Record], tasks: Mapping[str, Task], plan: Plan, machine: str, page: Path = PAGE
) -> None:
    """Write all tables between the markers of the page.

    Args:
        records: of all cells.
        tasks: by name.
        plan: the cells that there should be.
        machine: what the seconds were measured on, see `recording.machine`.
        page: another place than the committed page gets a copy of it first.

    Raises:
        ValueError: the page lacks a marker, or a run's budget is not its reference's.
    """
    records = list(records)
    scores = scores_of(records)
    if page != PAGE:
        shutil.copyfile(PAGE, page)
    write_into(page, "machine", f"Measured on: {machine}.\n\n{_how_complete(scores, plan)}")
    write_into(page, "suite", suite_table(records, tasks, plan))
    for kind in KINDS:
        tables = f"{headline_table(scores, plan, kind)}\n\n{wins_text(scores, plan, kind)}"
        write_into(page, kind, tables if plan.tasks(kind) else "No such task was run.")
    write_into(page, "tasks", task_table(scores, plan))
    write_into(page, "optimizers", optimizer_table(scores, plan))
    write_into(page, "predictability", predictability_text(scores, plan))
    write_into(page, "harm", harm_table(scores, plan))
    write_into(page, "overhead", overhead_table(records, plan))


def suite_table(records: Sequence[Record], tasks: Mapping[str, Task], plan: Plan) -> str:
    """What the tasks are, and what plain training runs with: budget, tuned learning rates and schedules, duration."""
    plain = {(one["task"], one["optimizer"]): one for one in records if one["method"] == PLAIN}
    timed = {
        (one["task"], one["optimizer"]): one for one in records if one["method"] == PLAIN and one["timed"]
    }
    rows = []
    for name in plan.tasks():
        task = tasks[name]
        rates = [_rate(plain.get((name, optimizer))) for optimizer in plan.headline]
        lasted = [timed[name, each]["seconds_total"] for each in plan.headline if (name, each) in timed]
        duration = f"{np.median(lasted):.1f} s" if lasted else _NOTHING
        budgets = {one["budget_steps"] for key, one in plain.items() if key[0] == name} or {task.budget_steps}
        budget = ", ".join(f"{each:,}" for each in sorted(budgets))
        rows.append([name, task.title, task.kind, task.target, budget, duration, *rates])
    return table(["task", "what it is", "kind", "what counts", "steps", "plain run", *plan.headline], rows)


def headline_table(scores: Sequence[Score], plan: Plan, kind: str) -> str:
    """All methods on the tasks of a kind, headline optimizers."""
    head = ["method", f"fewer steps to {SHOWN_SHARE} %", "to 50 %", "to 100 %", f"worst to {SHOWN_SHARE} %"]
    head += [
        "never reached it",
        "lower loss in the end",
        "worst",
        f"less time to {SHOWN_SHARE} %",
        "worst",
        "cells",
        "timed",
    ]
    due = plan.due(plan.tasks(kind), plan.headline)
    timed_due = plan.due(plan.tasks(kind), plan.headline, timed=True)
    rows = []
    for method in plan.methods:
        if method == PLAIN:
            continue
        steps = summarise(scores, method, due, _STEPS)
        others = [
            summarise(scores, method, due, measure) for measure in (steps_to(50), steps_to(100), quality)
        ]
        seconds = summarise(scores, method, timed_due, _SECONDS)
        row = [
            METHODS.get(method, method),
            _with_interval(steps),
            _mean(others[0]),
            _mean(others[1]),
            _worst(steps),
        ]
        row += [f"{steps.missed} of {steps.have}" if steps else _NOTHING, _mean(others[2]), _worst(others[2])]
        row += [_with_interval(seconds), _worst(seconds), _cells(steps, due), _cells(seconds, timed_due)]
        rows.append([f"**{each}**" if method == OURS[0] and each != _NOTHING else each for each in row])
    return table(head, rows)


def wins_text(scores: Sequence[Score], plan: Plan, kind: str) -> str:
    """On how many tasks koopcast is the best method, and which one is where it is not."""
    lines = []
    for what, measure in ((f"in steps to the {SHOWN_SHARE} % target", _STEPS), ("in final loss", quality)):
        found = wins(scores, plan, kind, measure)
        line = f"koopcast is the best of all methods {what} on {len(found.won)} of {found.due} tasks"
        if found.lost:
            behind = (f"{task} ({METHODS.get(best, best)})" for task, best in found.lost.items())
            line += f"; behind on {', '.join(behind)}"
        missing = found.due - len(found.won) - len(found.lost)
        line += f"; not run on {missing}" if missing else ""
        line += (
            f"; cells of some method are missing on {', '.join(found.incomplete)}" if found.incomplete else ""
        )
        lines.append(f"{line}.")
    return " ".join(lines)


def task_table(scores: Sequence[Score], plan: Plan) -> str:
    """Every task and headline optimizer: fewer steps to the shown target, a column a method, the best one bold."""
    methods = _columns(plan)
    rows = []
    for task in plan.tasks():
        for optimizer in plan.headline:
            due = plan.due([task], [optimizer])
            found = [summarise(scores, method, due, _STEPS) for method in methods]
            rows.append([task, optimizer, *_row(methods, found, OURS[0])])
    return table(["task", "optimizer", *(METHODS.get(method, method) for method in methods)], rows)


def optimizer_table(scores: Sequence[Score], plan: Plan) -> str:
    """Every optimizer over the tasks of a kind: fewer steps to the shown target, a column a method."""
    methods = _columns(plan)
    rows = []
    for kind in KINDS:
        for optimizer in plan.optimizers:
            due = plan.due(plan.tasks(kind), [optimizer])
            if due:
                found = [summarise(scores, method, due, _STEPS) for method in methods]
                rows.append([kind, optimizer, *_row(methods, found, OURS[0])])
    return table(["tasks", "optimizer", *(METHODS.get(method, method) for method in methods)], rows)


def predictability_text(scores: Sequence[Score], plan: Plan) -> str:
    """How the index goes with the gain, in ranks, over all tasks and optimizers."""
    found = indices_and_gains(scores, plan)
    ours = sum(one.method == OURS[0] for one in scores)
    if len(found) < 3:
        return f"{len(found)} of {ours} runs told an index: too few to compare."
    lines = []
    for name in ("all", *KINDS):
        some = [one for one in found if name in ("all", one.kind)]
        index, gain = [one.index for one in some], [one.gain for one in some]
        told = len(set(index)) > 1 and len(set(gain)) > 1
        correlation = f"{spearmanr(index, gain).statistic:.2f}" if told else _NOTHING
        middle = [f"{np.median(values):.2f}" if values else _NOTHING for values in (index, gain)]
        lines.append([name, str(len(some)), *middle, correlation])
    text = table(["tasks", "runs", "median index", "median gain", "rank correlation"], lines)
    return text if len(found) == ours else f"{text}\n\n{len(found)} of {ours} runs told an index."


def readme_headline(scores: Sequence[Score], plan: Plan) -> str:
    """The few figures of the project's own README (its marker is ``acceleration``)."""
    head = ["against plain training, tuned"]
    head += [f"{kind}: fewer {unit}" for kind in KINDS if plan.tasks(kind) for unit in ("steps", "seconds")]
    rows = []
    for method in plan.methods:
        if method == PLAIN:
            continue
        row = [METHODS.get(method, method)]
        for kind in KINDS:
            tasks = plan.tasks(kind)
            for measure, timed in ((_STEPS, False), (_SECONDS, True)) if tasks else ():
                due = plan.due(tasks, plan.headline, timed=timed)
                found = summarise(scores, method, due, measure)
                cell = _with_interval(found)
                row.append(
                    f"{cell} ({found.have} of {found.due} cells)"
                    if found and found.have < found.due
                    else cell
                )
        rows.append([f"**{each}**" if method == OURS[0] and each != _NOTHING else each for each in row])
    said = (
        f"{kind.capitalize()} tasks: {_worst_of_ours(scores, plan, kind)}"
        for kind in KINDS
        if plan.tasks(kind)
    )
    return "\n\n".join([table(head, rows), *said])


def _worst_of_ours(scores: Sequence[Score], plan: Plan, kind: str) -> str:
    """Wins and the worst cells, as sentences."""
    due, timed_due = (plan.due(plan.tasks(kind), plan.headline, timed=timed) for timed in (False, True))
    worst = {
        f"steps to {SHOWN_SHARE} %": summarise(scores, OURS[0], due, _STEPS),
        f"seconds to {SHOWN_SHARE} %": summarise(scores, OURS[0], timed_due, _SECONDS),
        "final loss": summarise(scores, OURS[0], due, quality),
    }
    cells = "; ".join(f"{what} {_worst(one)}" for what, one in worst.items() if one)
    text = wins_text(scores, plan, kind)
    return text + (f" Its worst cells: {cells}." if cells else "")


def _how_complete(scores: Sequence[Score], plan: Plan) -> str:
    """How many of the cells there are, timed and not, and which runs diverged."""
    due = len(plan.due(plan.tasks(), plan.optimizers)) * len(plan.methods)
    timed_due = len(plan.due(plan.tasks(), plan.optimizers, timed=True)) * len(plan.methods)
    timed = sum(bool(one.seconds) for one in scores)
    text = f"Cells: {len(scores)} of {due}; timed: {timed} of {timed_due}."
    diverged = [one.method for one in scores if one.diverged]
    if diverged:
        text += " Ended at a loss that is not finite: "
        text += ", ".join(
            f"{METHODS.get(name, name)} {diverged.count(name)}" for name in dict.fromkeys(diverged)
        )
        text += "."
    return text


def _columns(plan: Plan) -> list[str]:
    return [method for method in plan.methods if method != PLAIN]


def _row(methods: Sequence[str], found: Sequence[Summary | None], shown: str) -> list[str]:
    """Means, the best bold, `shown` with its interval; what was never reached and what is missing behind them."""
    best = max((one.mean for one in found if one), default=0.0)
    cells = []
    for method, one in zip(methods, found, strict=True):
        if one is None:
            cells.append(_NOTHING)
            continue
        text = f"**{figure(one.mean)}**" if one.mean == best else figure(one.mean)
        text += f" [{figure(one.low)}, {figure(one.high)}]" if method == shown and one.have > 1 else ""
        text += f" (−{one.missed})" if one.missed else ""
        cells.append(text + (f" ({one.have} of {one.due})" if one.have < one.due else ""))
    return cells


def _rate(record: Record | None) -> str:
    return f"{record['learning_rate']:g}, {record['schedule']}" if record else _NOTHING


def _mean(one: Summary | None) -> str:
    return figure(one.mean) if one else _NOTHING


def _with_interval(one: Summary | None) -> str:
    if one is None or one.have == 1:  # of one cell there is no interval
        return _mean(one)
    return f"{figure(one.mean)} [{figure(one.low)}, {figure(one.high)}]"


def _worst(one: Summary | None) -> str:
    return f"{figure(one.worst)} ({one.worst_at[0]}, {one.worst_at[1]})" if one else _NOTHING


def _cells(one: Summary | None, due: Sequence[Key]) -> str:
    return f"{one.have if one else 0} of {len(due)}"
