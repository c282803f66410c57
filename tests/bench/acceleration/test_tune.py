"""The tuning: its search finds what it should, and its result covers the suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from acceleration import tune
from koopcast_server.demo.suite.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    make_scheduler,
    rate_factor,
)
from koopcast_server.demo.tasks import TASKS


def test_rates_are_one_two_five() -> None:
    rates = [tune.rate(index) for index in range(-5, 3)]
    assert rates == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


@pytest.mark.parametrize("start", [-6, 0, 3])
def test_the_search_goes_on_until_the_best_is_inside(start: int) -> None:
    best = {"linear": -2, "constant": -4, "cosine": -1}
    tried = tune.search(lambda index, schedule: abs(index - best[schedule]), start, (2, 1))
    assert len(set(tried)) == len(tried)
    for schedule, index in best.items():
        reach = 2 if schedule == "linear" else 1
        indices = {entry[0] for entry in tried if entry[1] == schedule}
        assert indices >= set(range(index - reach, index + reach + 1))


def test_a_search_without_end_stops() -> None:
    tried = tune.search(lambda index, schedule: -index, 0, (1, 0))
    assert len(tried) <= 3 * 12


def test_the_file_is_read_back(tmp_path: Path) -> None:
    entry = {"learning_rate": 0.1, "schedule": "linear", "loss": 0.5, "grid": [[0.1, "linear", 0.5]]}
    tuned = {"regression-full": {"adamw": entry, "sgd-momentum": entry}, "pinn-burgers": {"sgd": entry}}
    tune.write(tuned, tmp_path / "tuned.json")
    assert tune.read(tmp_path / "tuned.json") == tuned
    assert tune.read(tmp_path / "none.json") == {}


def test_everything_is_tuned() -> None:
    tuned = tune.read(tune.TUNED)
    assert set(tuned) == set(TASKS)
    for task, entries in tuned.items():
        assert set(entries) == set(OPTIMIZERS), task
        for entry in entries.values():
            assert entry["schedule"] in SCHEDULES
            assert [entry["learning_rate"], entry["schedule"], entry["loss"]] in entry["grid"]
            assert entry["loss"] == min(loss for _, _, loss in entry["grid"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_scheduler_follows_the_schedule(schedule: str) -> None:
    optimizer = make_optimizer("adamw", nn.Linear(1, 1).parameters(), 0.5)
    scheduler = make_scheduler(optimizer, schedule, 4)
    for step in range(6):
        assert scheduler.get_last_lr() == [0.5 * rate_factor(schedule, step, 4)]
        optimizer.step()
        scheduler.step()
    assert rate_factor(schedule, 0, 4) == 1.0
    assert rate_factor(schedule, 5, 4) == (1.0 if schedule == "constant" else 0.0)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="'exponential'"):
        rate_factor("exponential", 0, 4)
