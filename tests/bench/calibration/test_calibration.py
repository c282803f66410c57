"""That the benchmark of the predicted error measures what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.cases import HORIZONS, Outcome, Plan, outcomes
from calibration.records import Record
from calibration.tables import CLASSES, calibration_table, decline_table, pooled
from calibration.tasks import TASKS
from calibration.windows import AHEAD, LONGEST, Windows, windows_of
from koopcast_server.koopman import OperatorSettings, predict

SNAPSHOTS = 200


def path_and_record() -> tuple[torch.Tensor, Record]:
    path = torch.randn(SNAPSHOTS, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(
        0
    )
    parts = [path[:, :10], path[:, 10:]]
    velocities = [part.diff(dim=0) for part in parts]
    grams = torch.stack([part @ part.T for part in velocities])
    squared = torch.stack([part.square().sum(-1) for part in parts])
    return path, Record(grams, squared, torch.tensor([10, 20]))


def snapshots(path: torch.Tensor, factor: int, *, averaged: bool) -> torch.Tensor:
    return path.reshape(-1, factor, path.shape[1]).mean(1) if averaged else path[::factor]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_windows_and_errors_are_those_of_the_weights(factor: int, averaged: bool) -> None:
    path, record = path_and_record()
    found = windows_of(record, 8, 5 * factor, 3, averaged=averaged)
    velocities = snapshots(path, factor, averaged=averaged).diff(dim=0)
    last_end = len(velocities) - AHEAD
    ends = [LONGEST - 1, round((LONGEST - 1 + last_end) / 2), last_end]
    coefficients = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wrong, truth = found.true_errors(coefficients, (1, 64))
    for window, end in enumerate(ends):
        known = velocities[end - 7 : end]
        torch.testing.assert_close(found.products.velocity_gram[window], known @ known.T)
        for row, horizon in enumerate((1, 64)):
            moved = velocities[end : end + horizon].sum(0)
            missed = coefficients[row, window] @ known - moved
            torch.testing.assert_close(wrong[row, window], missed.square().sum())
            torch.testing.assert_close(truth[row, window], moved.square().sum())
    if not averaged:
        lengths = path[::factor][torch.tensor(ends)].square().sum(-1)
        torch.testing.assert_close(found.products.last_squared, lengths)
    assert found.products.elements == 30


def test_moved_is_what_the_service_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from calibration import cases

    _, record = path_and_record()
    monkeypatch.setattr(cases, "recorded", lambda *_: {"plain": record})
    plan = Plan(("digits, SGD",), 1, (8,), (5,), 20, tmp_path)
    default = next(one for one in outcomes(plan) if one.operator == cases.DEFAULT)
    windows: Windows = windows_of(record, 8, 5, 20, averaged=False)
    answered = predict(windows.products, OperatorSettings(), HORIZONS)
    assert default.moved.tolist() == answered.moved.tolist()
    assert not default.moved.all()  # a random walk: some windows decline
    expected = torch.stack([one.predicted_error for one in answered.reports]).numpy()
    np.testing.assert_array_equal(default.predicted, expected)


def test_half_of_each_kind_of_task_was_fitted() -> None:
    for batches in (False, True):
        halves = [task.fitted for task in TASKS.values() if (task.batch is not None) == batches]
        assert 2 * sum(halves) == len(halves)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_repeats_itself(name: str) -> None:
    task = TASKS[name]
    ends = []
    for _ in range(2):
        training = task.start(seed=3)
        first = {key: value.detach().clone() for key, value in training.parameters.items()}
        for _ in range(2):
            training.step()
        assert any((value != first[key]).any() for key, value in training.parameters.items())
        ends.append(torch.cat([value.detach().flatten() for value in training.parameters.values()]))
    assert torch.equal(*ends)


def outcome(predicted: float, true: float, *, moved: bool) -> Outcome:
    shape = (len(HORIZONS), 2)
    full = np.full(shape, predicted)
    return Outcome(
        "digits, SGD",
        "deterministic",
        "default",
        full,
        full,
        np.full(shape, true**2),
        np.ones(shape),
        np.full(shape, moved),
    )


def test_tables_count_what_they_say() -> None:
    some = [outcome(0.1, 0.05, moved=True), outcome(0.1, 0.15, moved=True), outcome(0.2, 1.5, moved=False)]
    assert pooled(some, lambda one: one.true, CLASSES["1-3"]).shape == (3 * 3 * 2,)
    row = next(line for line in calibration_table(some).splitlines() if "fitted | 16 |" in line)
    assert "| 6 | 0.15 | 2.00 | 2.00 | 33 % | 67 % |" in row
    row = next(line for line in decline_table(some).splitlines() if line.startswith("| deterministic | 64 |"))
    assert row.endswith("| 33 % | 0 % | 0 % | 0 % |")
