"""Rank rules, settings, partitions, and the refusal to move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast_server.koopman import OperatorSettings, Products, predict, report
from koopcast_server.koopman.rank import auto_rank, choose_rank, energy_rank, numerical_rank


def products(*blocks: dmd_reference.Array) -> Products:
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*blocks))
    return Products(gram, dots, squared)


def singular(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


NO_NOISE = torch.full((1,), 1e-14, dtype=torch.float64)  # rounding of a Gram


def chosen_rank(squared: torch.Tensor, settings: OperatorSettings) -> int:
    (candidate,) = settings.candidates(4)
    return int(
        choose_rank(
            squared,
            NO_NOISE,
            candidate,
            settings,
            snapshots=12,
            rows=torch.full((1,), 100.0).double(),
            columns=4,
        )
    )


def test_energy_keeps_the_least_rank_that_holds_it() -> None:
    squared = singular(90.0, 9.0, 0.9, 0.1)
    wanted = {0.5: 1, 0.89: 1, 0.91: 2, 0.98: 2, 0.995: 3, 1.0: 4}
    assert {energy: int(energy_rank(squared, energy)) for energy in wanted} == wanted


def test_auto_is_at_most_half_the_window_and_at_least_one() -> None:
    flat = torch.ones(1, 11, dtype=torch.float64)
    assert int(auto_rank(flat, 12, common_part=False)) == 6
    assert int(auto_rank(flat, 3, common_part=False)) == 1
    assert int(auto_rank(singular(1.0, 2e-10, 0.0), 12, common_part=False)) == 2
    assert int(auto_rank(singular(1.0, 1e-11, 0.0), 12, common_part=False)) == 1


def test_auto_looks_past_the_common_part_of_weights() -> None:
    assert int(auto_rank(singular(1e11, 1.0, 0.5, 1e-11), 12, common_part=True)) == 3
    assert int(auto_rank(singular(1e11, 1.0, 0.5, 1e-11), 12, common_part=False)) == 1


def test_no_rule_keeps_what_is_noise() -> None:
    squared = singular(1.0, 1e-4, 1e-12, 1e-17)
    assert int(numerical_rank(squared, NO_NOISE)) == 3
    assert int(numerical_rank(squared, NO_NOISE + 1e-8)) == 2
    assert int(numerical_rank(squared, NO_NOISE + 10.0)) == 1
    assert int(numerical_rank(torch.zeros(1, 4, dtype=torch.float64), NO_NOISE)) == 0
    for rule in ("fixed", "energy"):
        settings = OperatorSettings(rank_rule=rule, rank=9, energy=1.0)
        assert chosen_rank(squared, settings) == 3
    assert chosen_rank(squared, OperatorSettings(rank_rule="fixed", rank=2)) == 2


def test_rounding_of_the_snapshots_counts_as_noise() -> None:
    path = dmd_reference.linear_system([0.95, 0.5], 200, 12, fixed_point=100.0)
    path = path.astype(np.float32).astype(np.float64)
    exact = products(path)
    told = Products(exact.velocity_gram, exact.velocity_dot_last, exact.last_squared, 2.0**-23, 2.0**-23)
    settings = OperatorSettings(rank_rule="fixed", rank=11, ridge=0.0)
    assert report(exact, settings)[0].rank.tolist() == [10]  # rounding is full rank
    assert report(told, settings)[0].rank.tolist() == [2]


def test_the_ridge_is_relative_to_the_largest_singular_value() -> None:
    path = dmd_reference.linear_system([0.9], 30, 12)
    settings = OperatorSettings(rank_rule="fixed", rank=1, ridge=0.5)
    for scale in (1.0, 1e6):
        found = report(products(path * scale), settings)[0]
        assert found.eigenvalues[0].real.tolist() == pytest.approx([0.9 / 1.25])


@pytest.mark.parametrize(
    "bad",
    [
        {"observable": "x"},
        {"rank_rule": "x"},
        {"rank": 0},
        {"energy": 0.0},
        {"energy": 1.1},
        {"energy": float("nan")},
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"ridge": float("inf")},
    ],
)
def test_settings_without_meaning_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)).replace("_", " ")):
        OperatorSettings(**bad)  # type: ignore[arg-type]


def test_blocks_that_would_do_worse_than_staying_decline() -> None:
    rng = np.random.default_rng(2)
    wander = np.cumsum(rng.standard_normal((12, 40)), axis=0)
    swing = wander.copy()
    swing[8:] = (
        swing[8] - 3 * (swing[8] - swing[7]) * np.arange(4)[:, None]
    )  # turns round where the back-test begins
    straight = dmd_reference.linear_system([0.9], 40, 12)
    batch = predict(products(swing, straight), OperatorSettings(), [1, 5])
    assert float(batch.report.backtest_error[0]) >= 1
    assert float(batch.report.backtest_error[1]) < 0.01
    assert batch.moved.tolist() == [[False, True]] * 2
    assert (batch.velocity_coefficients[:, 0] == 0).all()
    assert (batch.velocity_coefficients[:, 1] != 0).any()


def test_the_report_is_that_of_the_prediction() -> None:
    window = products(np.eye(8).cumsum(0))
    alone, beside = report(window, OperatorSettings())[0], predict(window, OperatorSettings(), [1]).report
    for field in ("rank", "spectral_radius", "residual", "backtest_error", "backtest_errors", "eigenvalues"):
        torch.testing.assert_close(getattr(alone, field), getattr(beside, field), equal_nan=True)
