"""The predictability index: 1 of a path that is foretold, 0 of noise, and a defined number of everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import OperatorSettings, Source, predict, totals
from koopcast_server.koopman.predictability import predictability
from sources import products, streamed, vectors

OPERATORS = {
    "default": OperatorSettings(),
    "rank 4": OperatorSettings(rank_rule="fixed", rank=4, ridge=1e-4),
    "back-tested": OperatorSettings(rank_rule="backtest", ridge=None, debias=None),
    "moves whatever happens": OperatorSettings(always_move=True),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def index_of(source: Source, settings: OperatorSettings, horizon: float = 4.0) -> float | None:
    batch = predict(source, settings, [horizon])
    return totals(batch.report, batch.moved[0], extrapolated=False).predictability


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def white(rng: np.random.Generator, blocks: int, count: int, size: int) -> Array:
    return rng.standard_normal((blocks, count, size))


def walk(rng: np.random.Generator, blocks: int, count: int, size: int) -> Array:
    return white(rng, blocks, count, size).cumsum(axis=1)


def averaged_walk(rng: np.random.Generator, blocks: int, count: int, size: int) -> Array:
    return np.asarray(walk(rng, blocks, 10 * count, size).reshape(blocks, count, 10, size).mean(axis=2))


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("values", [[0.95, 0.7], [0.93 * np.exp(0.4j)], [0.9, -0.8]], ids=str)
def test_a_linear_system_is_foretold_to_the_last_digit(observable: str, values: list[complex]) -> None:
    settings = OperatorSettings(observable, rank_rule="fixed", rank=64, ridge=0.0)  # type: ignore[arg-type]  # of two
    path = dmd_reference.linear_system(values, 50, 12)
    assert index_of(products(path), settings) == pytest.approx(1.0, abs=1e-6)
    few = dmd_reference.linear_system(values, 4, 20)
    assert index_of(vectors(few), settings) == pytest.approx(1.0, abs=1e-6)
    assert index_of(streamed(few, observable=observable), settings) == pytest.approx(1.0, abs=1e-6)


@every_operator
@pytest.mark.parametrize("noise", [white, walk, averaged_walk])
@pytest.mark.parametrize(("blocks", "size"), [(1, 3000), (60, 65), (300, 11), (2000, 1)])
def test_noise_is_not_foretold(
    operator: OperatorSettings, noise: Callable[..., Array], blocks: int, size: int
) -> None:
    path = noise(np.random.default_rng(0), blocks, 12, size)
    found = index_of((vectors if size < 12 else products)(*path), operator)
    assert found is not None
    assert found < 0.1


def test_the_way_back_from_noise_to_the_mean_does_not_count() -> None:
    # Two weights and a long window: the operator learns that noise is undone, and foretells that.
    path = white(np.random.default_rng(0), 300, 32, 2)
    batch = predict(vectors(*path), OperatorSettings(), [1.0])
    found = totals(batch.report, batch.moved[0], extrapolated=False)
    assert found.predictability is not None
    assert 1.0 - found.backtest_error**2 > 0.15
    assert found.predictability < 0.05


def test_where_training_goes_counts_as_far_as_it_exceeds_the_noise() -> None:
    rng = np.random.default_rng(0)
    signal = dmd_reference.linear_system([0.97, 0.9], 2000, 12)
    shares: list[float] = []
    for level in (0.0, 0.01, 0.1, 1.0):
        noise = level * np.abs(np.diff(signal, axis=0)).max() * walk(rng, 1, 12, 2000)[0]
        share = index_of(products(signal + noise), OPERATORS["rank 4"])
        assert share is not None
        shares.append(share)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1.0, abs=1e-3)
    assert shares[-1] == pytest.approx(0.0, abs=0.02)


@every_operator
@pytest.mark.parametrize("count", [3, 4, 5, 7, 12])
def test_weights_that_stay_are_not_foretold_anything(operator: OperatorSettings, count: int) -> None:
    assert index_of(products(np.ones((count, 20))), operator) == (None if count == 3 else 0.0)
    assert index_of(vectors(np.ones((count, 2))), operator) == (None if count == 3 else 0.0)


def test_a_block_that_came_to_rest_is_not_foretold_anything() -> None:
    path = np.random.default_rng(0).standard_normal((12, 20))
    path[5:] = path[5]
    assert index_of(products(path), OperatorSettings()) == 0.0


def test_the_shortest_back_test_scores_its_only_stride() -> None:
    line = np.arange(4)[:, None] * np.random.default_rng(0).standard_normal(20)
    assert index_of(products(line), OperatorSettings()) == pytest.approx(1.0, abs=1e-6)


def test_blocks_count_by_how_far_they_go() -> None:
    rng = np.random.default_rng(0)
    smooth, noise = dmd_reference.linear_system([0.97, 0.9], 500, 12), walk(rng, 1, 12, 500)[0]
    smooth, noise = (path / np.linalg.norm(path[-1] - path[-3]) for path in (smooth, noise))
    mostly_smooth = index_of(products(10 * smooth, noise), OPERATORS["rank 4"])
    mostly_noise = index_of(products(smooth, 10 * noise), OPERATORS["rank 4"])
    assert mostly_smooth is not None
    assert mostly_noise is not None
    assert mostly_smooth > 0.95
    assert mostly_noise < 0.05


def test_it_is_the_same_at_every_horizon() -> None:
    path = walk(np.random.default_rng(1), 1, 12, 30)[0] + np.arange(12)[:, None]
    found = {index_of(products(path), OPERATORS["back-tested"], horizon) for horizon in (1.0, 2.5, 4.0, 64.0)}
    assert len(found) == 1


def test_lengths_beyond_float64_when_squared_are_no_trouble() -> None:
    path = dmd_reference.linear_system([0.97, 0.9], 50, 12)
    assert predictability(tensor(3e200, 0.0), tensor(5e200, 0.0)) == pytest.approx(0.64)
    assert index_of(products(1e-120 * path), OperatorSettings()) == pytest.approx(1.0, abs=1e-6)


def test_what_is_not_finite_is_left_out_or_none() -> None:
    nan, inf = math.nan, math.inf
    assert predictability(tensor(nan), tensor(nan)) is None
    assert predictability(tensor(nan, 0.6), tensor(nan, 1.0)) == pytest.approx(0.64)
    assert predictability(tensor(inf), tensor(inf)) is None
    assert predictability(tensor(2.0), tensor(1.0)) == 0.0


def test_a_window_of_numbers_that_are_none_is_not_foretold_anything() -> None:
    sound = products(np.random.default_rng(0).standard_normal((12, 20)))
    broken = replace(sound, velocity_gram=torch.full_like(sound.velocity_gram, math.nan))
    assert index_of(broken, OperatorSettings()) == 0.0
