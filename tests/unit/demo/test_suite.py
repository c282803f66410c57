"""`koopcast demo --task`: the same optimizers, budgets and rules as the suite's own runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import koopcast
from acceleration import score as suite_score
from acceleration import training as suite_training
from koopcast_server.demo import DemoError, run_task, task_table
from koopcast_server.demo.suite import targets, training, tuned
from koopcast_server.demo.suite.listing import DATA, DIGITS
from koopcast_server.demo.suite.marks import EVALUATIONS, Marks
from koopcast_server.demo.suite.optimizers import OPTIMIZERS
from koopcast_server.demo.suite.report import compare_runs, write_task_json, write_task_plot
from koopcast_server.demo.suite.training import TaskRun, train_task
from koopcast_server.demo.tasks import TASKS, Problem, Task

TUNED = tuned.Tuned("adamw", 0.01, "linear")


def short(budget_steps: int = 240) -> Task:
    return replace(TASKS["hamiltonian-oscillator"], budget_steps=budget_steps)


def curve(counted: list[float], loss: list[float], budget_steps: int = 100) -> TaskRun:
    return TaskRun(budget_steps, counted, [0.5 * steps for steps in counted], loss, seconds_total=50.0)


def due(budget_steps: int, spent: dict[int, float]) -> list[tuple[int, float]]:
    """Where a run is evaluated that spends so many steps beside those of the optimizer."""
    marks, counted, found = Marks(budget_steps), 0.0, []
    for step in range(budget_steps + 1):
        counted += spent.get(step, 0.0) + (step > 0)
        if marks.due(step, counted):
            found.append((step, counted))
    return found


@pytest.mark.parametrize("budget_steps", [64, 100, 500, 2000])
def test_a_probe_does_not_move_the_steps_that_are_evaluated(budget_steps: int) -> None:
    plain = due(budget_steps, {})
    assert len(plain) == EVALUATIONS + 1
    assert plain[0] == (0, 0.0)
    assert plain[-1] == (budget_steps, budget_steps)
    assert [step for step, _ in due(budget_steps, {budget_steps // 3: 0.25})] == [step for step, _ in plain]


def test_what_is_spent_beside_the_optimizer_is_evaluated_too() -> None:
    found = due(640, {105: 80.0, 205: 3.0, 206: 3.0, 207: 3.0})
    assert (105, 185.0) in found
    assert (207, 296.0) in found
    assert (206, 292.0) not in found
    assert {step for step, _ in found} >= set(range(0, 641, 10))


def test_every_optimizer_is_tuned_on_every_task() -> None:
    for task in TASKS:
        for name in OPTIMIZERS:
            assert tuned.load_tuned(task, name).learning_rate > 0
    with pytest.raises(DemoError, match=r"sgd-momentum, adamw.*not 'lion'"):
        tuned.load_tuned("henon-heiles", "lion")


@pytest.mark.parametrize(
    "loss", [[8.0, 4.0, 2.0, 1.0, 0.5], [8.0, 1.0, 3.0, 0.9, 0.1], [8.0, 9.0, 8.5, 7.0, 7.5]]
)
@pytest.mark.parametrize("counted", [[0.0, 20.0, 40.0, 60.0, 100.0], [0.0, 20.0, 41.0, 80.0, 99.0]])
def test_targets_are_crossed_where_the_suite_says(loss: list[float], counted: list[float]) -> None:
    run = curve(counted, loss)
    record = {"counted": counted, "seconds": run.seconds, "loss": loss, "budget_steps": run.budget_steps}
    for target in (8.0, 5.0, 1.7, 0.95, 0.1):
        for unit, at in (("counted", run.counted), ("seconds", run.seconds)):
            ours = targets.first_crossing(run, target, at)
            assert ours == pytest.approx(suite_score.first_crossing(record, target, unit))
    assert targets.best_within(run, 30.0) == pytest.approx(suite_score.loss_at(record, 30.0))


def test_what_many_evaluations_lead_to_is_there_when_they_end() -> None:
    run = curve([0.0, 10.0, 20.0, 90.0, 100.0, 110.0], [8.0, 4.0, 2.0, 0.1, 0.05, 0.02])
    assert targets.best_within(run, 80.0) == 2.0
    assert targets.first_crossing(run, 1.0, run.counted) == 90.0
    assert targets.best_within(run, 100.0) == 0.05


def test_a_target_that_is_never_reached_costs_the_budget_and_plain_training() -> None:
    plain = curve([0.0, 50.0, 100.0], [4.0, 2.0, 1.0])
    worse = curve([0.0, 50.0, 100.0], [4.0, 3.0, 2.0])
    half, _, whole = targets.targets_of(plain, worse)
    assert half.step_ratio == pytest.approx(50 / 100)
    assert whole.accelerated_steps is None
    assert whole.step_ratio == pytest.approx(100 / 200)
    assert whole.time_ratio == pytest.approx(50 / 100)


def test_a_plain_run_is_the_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    task = short(64)
    monkeypatch.setattr(suite_training, "TASKS", {task.name: task})
    cell = suite_training.Cell(task.name, "adamw", "plain", 3, False, 0.01, "linear", task.budget_steps)
    theirs = suite_training.train_cell(cell, None)
    run = train_task(task, TUNED, 3, None, lambda *_: None)
    assert run.counted == theirs["counted"]
    assert [float(f"{loss:.4g}") for loss in run.loss] == theirs["loss"]
    assert run.counted_steps == task.budget_steps
    assert training._OVERRUN == suite_training.OVERRUN


def test_a_run_with_koopcast_counts_its_probes(tmp_path: Path) -> None:
    task = short()
    told: list[float] = []
    with koopcast.connect() as client:
        accelerated = train_task(task, TUNED, 0, client.target, lambda counted, _: told.append(counted))
    plain = train_task(task, TUNED, 0, None, lambda *_: None)
    comparison = compare_runs(task, TUNED, 0, task.make(0), plain, accelerated)
    assert told == accelerated.counted
    stats, status = accelerated.stats, accelerated.status
    assert stats is not None
    assert status is not None
    assert status.name == "demo-hamiltonian-oscillator-seed-0"
    assert accelerated.counted_steps == stats.steps + stats.probe_evaluations
    assert accelerated.ended
    assert stats.probe_evaluations > 0
    assert stats.gradient_agreement == pytest.approx(1.0, abs=1e-3)
    assert comparison.targets[-1].loss == pytest.approx(min(plain.loss))
    write_task_json(comparison, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [one["share_percent"] for one in figures["targets"]] == [50, 75, 100]
    write_task_plot(plain, accelerated, comparison, task.title, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverges_ends_there() -> None:
    def make(seed: int) -> Problem:
        problem = short().make(seed)
        finite = problem.batch_loss
        problem.batch_loss = lambda step: finite(step) * (math.inf if step == 20 else 1.0)
        return problem

    run = train_task(replace(short(), make=make), TUNED, 0, None, lambda *_: None)
    assert run.diverged
    assert len(run.counted_after) == 20
    assert all(math.isfinite(loss) for loss in run.loss)


def test_the_list_has_every_task_and_its_data() -> None:
    assert list(DATA) == list(TASKS)
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(task_table())
    for task in TASKS.values():
        assert task.name in shown.get()
        assert task.title in shown.get()
    assert "koopcast[demo]" in shown.get()
    assert DIGITS in shown.get()


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"digits, hamiltonian-oscillator.*not 'none'"):
        run_task("none", "adamw", None, tmp_path / "plot.png", 0)
