"""That ratios, means and intervals are what they are said to be, worked out by hand; that pages and plots come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from acceleration.costs import harm_table, overhead_table
from acceleration.plots import draw_all
from acceleration.score import METHODS, Plan, Score, first_crossing, loss_at, scores_of
from acceleration.summary import harms, indices_and_gains, quality, seconds_to, steps_to, summarise, wins
from acceleration.tables import headline_table, predictability_text, readme_headline, task_table, write_page
from koopcast_server.demo.tasks.task import Problem, Task

BUDGET = 100
KINDS = {"wave": "deterministic", "image": "deterministic", "text": "stochastic"}


def record(
    losses: Sequence[float | None],
    *,
    method: str = "plain",
    task: str = "wave",
    optimizer: str = "adamw",
    seed: int = 0,
    timed: bool = False,
    seconds: float = 1.0,
    counted: Sequence[int] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """A run that is evaluated evenly over the budget."""
    at = list(counted or (round(BUDGET * place / (len(losses) - 1)) for place in range(len(losses))))
    return {
        "task": task, "optimizer": optimizer, "method": method, "seed": seed, "timed": timed,
        "learning_rate": 0.03, "schedule": "linear", "budget_steps": BUDGET, "code": "made up",
        "counted": at, "seconds": [seconds * step / BUDGET for step in at], "loss": list(losses),
        "optimizer_steps": BUDGET, "counted_steps": float(BUDGET), "seconds_total": seconds,
        "facts": {}, "diverged": False, **others,
    }  # fmt: skip


def score(records: Sequence[dict[str, Any]], method: str, *, seed: int = 0) -> Score:
    (found,) = (one for one in scores_of(records) if (one.method, one.seed) == (method, seed))
    return found


PLAIN = record([1.0, 0.1, 0.01, 0.001, 0.0001])  # at 0, 25, 50, 75, 100: a power of ten every 25 steps
FASTER = record([1.0, 0.01, 1e-4, 1e-6, 1e-8], method="ours")


def test_crossings_are_straight_lines_in_the_logarithm() -> None:
    assert first_crossing(PLAIN, 0.01, "counted") == pytest.approx(50)
    assert first_crossing(PLAIN, math.sqrt(0.1 * 0.01), "counted") == pytest.approx(37.5)
    assert first_crossing(PLAIN, 2.0, "counted") == 0
    assert first_crossing(PLAIN, 1e-5, "counted") is None
    assert loss_at(PLAIN, 37.5) == pytest.approx(math.sqrt(0.1 * 0.01))
    assert loss_at(PLAIN, 1000) == pytest.approx(1e-4)


def test_what_was_spent_at_once_has_no_line_in_it() -> None:
    burst = record([1.0, 0.5, 0.4, 1e-4], method="ours", counted=(0, 10, 20, 90))
    assert first_crossing(burst, 0.01, "counted") == 90
    assert first_crossing(burst, 0.45, "counted") == pytest.approx(
        10 + 10 * math.log(0.5 / 0.45) / math.log(0.5 / 0.4)
    )


def test_the_best_so_far_counts_and_what_is_not_finite_does_not() -> None:
    bumpy = record([1.0, 0.1, 0.5, math.nan, 0.01])
    assert first_crossing(bumpy, 0.1, "counted") == 25
    assert loss_at(bumpy, 75) == pytest.approx(0.1)
    assert first_crossing(bumpy, math.sqrt(0.1 * 0.01), "counted") == pytest.approx(87.5)
    lost = record([1.0, None, None], method="nodes", diverged=True, counted=(0, 10, 20), counted_steps=20.0)
    found = score([PLAIN, lost], "nodes")
    assert found.diverged
    assert found.quality == pytest.approx(1e-4)


def test_a_run_without_any_loss_is_as_good_as_its_first_weights() -> None:
    silent = record([1.0], method="nodes", counted=(0,), diverged=True, counted_steps=1.0)
    silent |= {"loss": [], "counted": [], "seconds": []}
    found = score([PLAIN, silent], "nodes")
    assert not any(found.reached.values())
    assert found.quality == pytest.approx(1e-4)
    assert scores_of([{**silent, "method": "plain"}, FASTER]) == []


def test_twice_as_fast_is_two_and_plain_is_one() -> None:
    faster = score([PLAIN, FASTER], "ours")
    assert [faster.steps[share] for share in (50, 75, 100)] == pytest.approx([2, 2, 2])
    assert faster.quality == pytest.approx(1e4)
    assert all(faster.reached.values())
    assert not faster.seconds
    plain = score([PLAIN, FASTER], "plain")
    assert [*plain.steps.values(), plain.quality] == pytest.approx([1, 1, 1, 1])


def test_what_never_arrives_loses_its_budget_and_plain_follows() -> None:
    slow = record([1.0, 0.5, 0.1, 0.05, 0.01], method="pdt")
    found = score([PLAIN, slow], "pdt")
    assert found.reached == {50: True, 75: False, 100: False}
    assert found.steps[50] == pytest.approx(50 / 100)
    assert found.steps[75] == pytest.approx(75 / (100 + 75))
    assert found.steps[100] == pytest.approx(0.5)


def test_losses_beyond_the_budget_do_not_count_in_full() -> None:
    late = record([1.0, 0.1, 0.001], method="ours", counted=(0, 90, 110))
    assert score([PLAIN, late], "ours").quality == pytest.approx(1e-4 / 0.01)


def test_seconds_come_from_timed_runs_of_both() -> None:
    records = [PLAIN, FASTER, record(PLAIN["loss"], timed=True, seconds=3.0)]
    assert not score(records, "ours").seconds
    records.append(record(FASTER["loss"], method="ours", timed=True, seconds=6.0))
    assert score(records, "ours").seconds[75] == pytest.approx((0.75 * 3) / (0.375 * 6))
    unfinished = record(
        [1.0, None], method="ema", timed=True, counted=(0, 50), seconds=2.0, counted_steps=50.0
    )
    never = score([*records, unfinished], "ema")
    assert never.seconds[100] == pytest.approx(3 / (2 * 2 + 3))


def test_other_budgets_are_refused_and_runs_without_a_reference_have_no_score() -> None:
    with pytest.raises(ValueError, match="plain training had"):
        scores_of([PLAIN, {**FASTER, "budget_steps": 50}])
    assert scores_of([FASTER]) == []


def made_scores(ratios: dict[tuple[str, str, int], float], method: str = "ours") -> list[Score]:
    reached = {50: True, 75: True, 100: True}
    return [
        Score(*key[:2], method, key[2], dict.fromkeys((50, 75, 100), ratio), reached, {}, ratio, False, {})
        for key, ratio in ratios.items()
    ]


def test_every_pair_weighs_the_same_whatever_its_seeds() -> None:
    plan = Plan(KINDS, headline=("adamw",), others=("sgd",), seeds=(0, 1))
    ratios = {("wave", "adamw", 0): 2.0, ("wave", "adamw", 1): 8.0, ("wave", "sgd", 0): 1.0}
    due = plan.due(["wave"], plan.optimizers)
    found = summarise(made_scores(ratios), "ours", due, steps_to(75))
    assert found is not None
    assert found.mean == pytest.approx(2.0)  # sqrt(sqrt(2 * 8) * 1)
    assert (found.worst, found.worst_at) == (1.0, ("wave", "sgd", 0))
    assert (found.have, found.due) == (3, 3)


def test_intervals_hold_the_mean_and_are_as_wide_as_the_seeds() -> None:
    plan = Plan(KINDS, headline=("adamw",), others=())
    due = plan.due(["wave", "image"], plan.optimizers)
    ratios = {key: 1.5 + 0.2 * key[2] + (key[0] == "image") for key in due}
    found = summarise(made_scores(ratios), "ours", due, quality)
    assert found is not None
    assert min(ratios.values()) < found.low < found.mean < found.high < max(ratios.values())
    again = summarise(made_scores(ratios), "ours", due, quality)
    assert found == again
    one = summarise(made_scores({due[0]: 2.0}), "ours", due[:1], quality)
    assert one is not None
    assert (one.low, one.mean, one.high) == pytest.approx((2.0, 2.0, 2.0))


def test_missing_cells_are_told() -> None:
    plan = Plan(KINDS, headline=("adamw",), others=(), seeds=(0, 1), methods=("plain", "ema", "ours"))
    scores = made_scores({("wave", "adamw", 0): 2.0})
    assert "(1 of 2)" in task_table(scores, plan)
    assert "| 1 of 4 |" in headline_table(scores, plan, "deterministic").replace("**", "")
    assert "(1 of 4 cells)" in readme_headline(scores, plan)
    assert "koopcast: 1 of 6 cells, 0 of 3 timed" in harm_table(scores, plan)
    found = wins(scores, plan, "deterministic", steps_to(75))
    assert (list(found.won), dict(found.lost), found.due) == (["wave"], {}, 2)
    assert list(found.incomplete) == ["wave", "image"]
    assert summarise(scores, "ours", plan.due(["wave"], ["adamw"], timed=True), seconds_to(75)) is None


def test_the_best_method_is_named_where_it_is_not_ours() -> None:
    plan = Plan(
        {"wave": "deterministic"}, headline=("adamw",), others=(), seeds=(0,), methods=("ema", "ours")
    )
    key = ("wave", "adamw", 0)
    scores = [*made_scores({key: 1.2}), *made_scores({key: 1.3}, "ema")]
    assert wins(scores, plan, "deterministic", steps_to(75)).lost == {"wave": "ema"}


def test_all_harm_is_listed() -> None:
    slow = record([1.0, 0.1, 0.02, 0.002, 0.0001], method="ours-no-probe")
    fast = {**FASTER, "method": "ours"}
    found = harms(scores_of([PLAIN, slow, fast]))
    assert [one.what for one in found] == ["steps, 50 %", "steps, 75 %"]
    assert {one.method for one in found} == {"ours-no-probe"}
    text = harm_table(scores_of([PLAIN, slow, fast]), Plan(KINDS))
    assert "Ratios below 0.97: 2 (bold)." in text
    assert "| koopcast, no probe | wave | adamw | 0 | **0.87** | **0.93** | 1.00 | – | – | – | 1.00 |" in text


def test_the_index_is_found_among_facts_and_statistics() -> None:
    told = {**FASTER, "facts": {"predictability": 0.9}}
    nested = {**FASTER, "seed": 1, "facts": {"stats": {"predictability": 0.5}}}
    silent = {**FASTER, "seed": 2, "facts": {"predictability": None}}
    scores = scores_of([told, nested, silent, *({**PLAIN, "seed": seed} for seed in range(3))])
    found = indices_and_gains(scores, Plan(KINDS))
    assert [(one.index, round(one.gain, 9), one.kind) for one in found] == [
        (0.9, 2.0, "deterministic"),
        (0.5, 2.0, "deterministic"),
    ]
    assert predictability_text(scores, Plan(KINDS)).startswith("2 of 3 runs")


def some_records(plan: Plan) -> list[dict[str, Any]]:
    """Every cell of a plan, each method with its own pace."""
    records = []
    for number, method in enumerate(plan.methods):
        for timed in (False, True):
            for task, optimizer, seed in plan.due(plan.kinds, plan.optimizers, timed=timed):
                pace = 5 * (1 + 0.1 * number) * (1 + 0.02 * seed)
                losses = [math.exp(-pace * place / 64) for place in range(65)]
                facts: dict[str, Any] = {"jumps": [[40, 1, 160], [70, 0, 40]]}
                facts |= {"predictability": 0.8 - 0.1 * seed, "seconds_in_hook": 0.1, "seconds_blocked": 0.01}
                names: dict[str, Any] = {"method": method, "task": task, "optimizer": optimizer, "seed": seed}
                records.append(record(losses, **names, timed=timed, facts=facts if "ours" in method else {}))
    return records


def nothing(seed: int) -> Problem:
    return Problem(torch.nn.Identity(), lambda step: torch.zeros(()), lambda: 0.0, lambda: torch.zeros(()))


def test_page_and_plots_are_written(tmp_path: Path) -> None:
    plan = Plan(KINDS, seeds=(0, 1))
    records = some_records(plan)
    tasks = {
        name: Task(
            name, name.title(), "stochastic" if name == "text" else "deterministic", BUDGET, "loss", nothing
        )
        for name in KINDS
    }
    page = tmp_path / "README.md"
    write_page(records, tasks, plan, "somewhere", page)
    text = page.read_text(encoding="utf-8")
    assert (
        f"Cells: {27 * len(METHODS)} of {27 * len(METHODS)}; timed: {9 * len(METHODS)} of {9 * len(METHODS)}."
        in text
    )
    assert "Measured on: somewhere." in text
    assert "75 % target on 2 of 2 tasks" in text  # koopcast comes later, and so goes faster, than the others
    assert "nan" not in text
    assert {path.name for path in draw_all(records, plan, tmp_path)} == {
        "acceleration.png",
        "curves.png",
        "curves-sgd-momentum.png",
        "predictability.png",
    }
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))


def test_nothing_measured_makes_a_page_without_plots(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    write_page([], {}, Plan({}), "nowhere", page)
    assert draw_all([], Plan(KINDS), tmp_path) == []
    assert overhead_table([], Plan(KINDS)) == "No timed cells."
