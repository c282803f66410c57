"""What is expected of a prediction, and which candidate is believed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast_server.koopman import OperatorSettings, Products, predict
from koopcast_server.koopman.confidence import at_stride, least_error, predicted_error, spread_of
from koopcast_server.koopman.settings import Candidate, Debias


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def expected(errors: list[float], spread: float, strides: float) -> float:
    return float(predicted_error(tensor(errors), tensor(spread), strides))


def test_errors_are_those_of_the_next_stride_that_was_tested() -> None:
    errors = tensor([0.1, 0.2, 0.3])
    asked = {0.2: 0.1, 1: 0.1, 1.1: 0.2, 2: 0.2, 3: 0.3, 99: 0.3}
    assert {strides: float(at_stride(errors, strides)) for strides in asked} == asked
    assert at_stride(errors[:, :0], 1).isnan().all()


# -------------------------------------------------------------------------------------------- the predicted error


def test_as_far_as_it_reaches_the_back_test_answers_alone() -> None:
    assert [expected([0.01, 0.02], 0.9, strides) for strides in (0.5, 1, 1.5, 2)] == [0.01, 0.01, 0.02, 0.02]


def test_beyond_it_hands_over_to_the_spread() -> None:
    scaled = 1.4 * math.sqrt(4) * 0.05
    assert expected([0.01, 0.02], 0.05, 8) == pytest.approx(math.sqrt(0.02 * scaled / math.hypot(scaled, 1)))
    assert expected([0.01, 0.02], 0.05, 2 + 1e-9) == pytest.approx(0.02)
    far = [expected([0.01, 0.02], min(1.0, 0.05 * strides), strides) for strides in (2, 4, 8, 16, 64, 1e6)]
    assert far == sorted(far)
    assert far[-1] == pytest.approx(1.0, abs=0.01)


def test_both_count() -> None:
    usual = expected([0.01, 0.02], 0.05, 8)
    assert expected([0.01, 0.08], 0.05, 8) > 1.8 * usual
    assert expected([0.01, 0.02], 0.20, 8) > 1.8 * usual


def test_an_answer_that_is_as_good_as_none_stays_so() -> None:
    assert 0.9 < expected([1.0], 1.0, 64) <= 1.0
    assert expected([3.0], 1.0, 64) == pytest.approx(3.0 ** (1 / 8), rel=0.01)


def test_operators_that_explode_show_in_the_spread() -> None:
    assert expected([0.1], 6e4, 16) == pytest.approx(1e4)
    assert expected([0.1], 6.0, 16) < 1.0 + 1e-12


def test_what_is_not_known_is_not_made_up() -> None:
    assert math.isnan(expected([], 0.1, 4))
    assert math.isnan(expected([math.nan], 0.1, 4))
    assert math.isnan(expected([math.nan], math.inf, 4))
    assert expected([0.5], math.nan, 1) == 0.5
    assert expected([0.5], math.nan, 4) == pytest.approx(
        math.sqrt(0.5)
    )  # the worst is expected of the spread
    assert expected([math.inf], 0.1, 4) == math.inf


def test_no_error_at_all_is_not_believed_beyond_the_resolution() -> None:
    assert 0.0 < expected([0.0], 0.0, 4) < 1e-6
    assert expected([0.0], 0.1, 4) > 1e-5


def test_every_block_has_its_own() -> None:
    errors, spread = tensor([0.01, 0.02], [0.3, 0.5], [1.0, math.nan]), tensor(0.05, 0.4, 0.1)
    together = predicted_error(errors, spread, 16)
    alone = [predicted_error(errors[[b]], spread[[b]], 16) for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0, equal_nan=True)


def test_the_spread_is_relative_to_the_shorter_answer() -> None:
    now, earlier = (
        tensor([3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        tensor([3.0, 3.0], [100.0, 0.0], [1.0, 0.0], [0.0, 0.0]),
    )
    found = spread_of(now, earlier)
    assert found[:3].tolist() == pytest.approx([1 / math.sqrt(18), 99.0, math.inf])
    assert found[3].isnan()
    torch.testing.assert_close(found, spread_of(earlier, now), equal_nan=True)


def test_it_is_honest_about_a_system_that_the_window_cannot_hold() -> None:
    """12 decaying modes seen through windows of 12 snapshots: the errors of 40 mixtures, and what was expected."""
    rng = np.random.default_rng(5)
    eigenvalues = 1 - np.logspace(-3, -0.3, 12)
    size = rng.lognormal(0.0, 1.0, (40, 12))
    paths = [amplitudes * eigenvalues ** np.arange(76)[:, None] for amplitudes in size]
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*(path[:12] for path in paths)))
    horizons = [1, 3, 16, 64]
    found = predict(Products(gram, dots, squared), OperatorSettings(rank_rule="fixed", rank=3), horizons)
    for index, horizon in enumerate(horizons):
        coefficients = found.velocity_coefficients[index].numpy()
        said = np.stack(
            [one @ np.diff(path[:12], axis=0) for one, path in zip(coefficients, paths, strict=True)]
        )
        moved = np.stack([path[11 + horizon] - path[11] for path in paths])
        true = np.linalg.norm(said - moved, axis=1) / np.linalg.norm(moved, axis=1)
        factor = np.median(true / found.reports[index].predicted_error.numpy())
        assert 1 / 3 < factor < 3


# --------------------------------------------------------------------------------------------------- the choice


def candidate(debias: Debias = "none", rank: int = 1) -> Candidate:
    return Candidate("fixed", rank, 1e-6, debias)


def test_the_least_error_at_the_horizon_wins() -> None:
    errors = torch.stack([tensor([0.1, 0.9], [0.2, 0.2]), tensor([0.2, 0.3], [0.3, 0.1])])
    some = [candidate(rank=1), candidate(rank=2)]
    assert least_error(errors, some, 1).tolist() == [0, 0]
    assert least_error(errors, some, 2).tolist() == [1, 1]
    assert least_error(errors, some, 64).tolist() == [1, 1]


def test_the_first_of_equals_and_of_the_untested_wins() -> None:
    some = [candidate(rank=1), candidate(rank=2)]
    assert least_error(torch.full((2, 3, 1), 0.5, dtype=torch.float64), some, 1).tolist() == [0, 0, 0]
    assert least_error(torch.full((2, 3, 1), torch.nan, dtype=torch.float64), some, 1).tolist() == [0, 0, 0]
    assert least_error(torch.empty((2, 3, 0), dtype=torch.float64), some, 1).tolist() == [0, 0, 0]
    assert least_error(torch.stack([tensor([torch.nan]), tensor([torch.inf])]), some, 1).tolist() == [0]


@pytest.mark.parametrize("debias", ["total_least_squares", "forward_backward"])
def test_a_correction_for_noise_must_win_clearly(debias: Debias) -> None:
    some = [candidate(), candidate(debias)]
    assert least_error(torch.stack([tensor([0.30]), tensor([0.21])]), some, 1).tolist() == [0]
    assert least_error(torch.stack([tensor([0.30]), tensor([0.19])]), some, 1).tolist() == [1]
    among_themselves = [candidate(debias, 1), candidate(debias, 2)]
    assert least_error(torch.stack([tensor([0.30]), tensor([0.29])]), among_themselves, 1).tolist() == [1]
