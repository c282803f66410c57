"""The methods with each other: one answer from a Gram, from vectors and from an R factor, and less bias from noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import Debias, Observable, OperatorSettings, Source, predict, report
from sources import displacement, products, streamed, vectors

PRESET = OperatorSettings(
    "state", "energy", energy=1.0, ridge=0.0, stabilize=False, always_move=True
)  # of Dogra & Redman 2020
HORIZONS = (0.5, 1, 7.25, 60)
MOVES: dict[str, Any] = {"always_move": True}
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank 2": {"rank_rule": "fixed", "rank": 2},
    "all of it": {"rank_rule": "energy", "energy": 1.0, "ridge": 0.0, "stabilize": False},
    "energy": {"rank_rule": "energy", "energy": 0.99},
    "gavish donoho": {"rank_rule": "gavish_donoho"},
    "ridge": {"ridge": 0.05},
    "total least squares": {"rank_rule": "fixed", "rank": 3, "debias": "total_least_squares"},
    "forward backward": {"rank_rule": "fixed", "rank": 3, "debias": "forward_backward"},
    "delays": {"rank_rule": "fixed", "rank": 3, "delays": 2},
    "forgetting": {"forgetting": 0.8},
    "bound": {"max_jump": 0.1},
    "back-tested rank": {"rank_rule": "backtest"},
    "back-tested ridge": {"ridge": None},
    "back-tested correction": {"rank_rule": "fixed", "rank": 3, "debias": None},
}
both_observables = pytest.mark.parametrize("observable", ["velocity", "state"])
every_method = pytest.mark.parametrize("method", METHODS)


def training(size: int, count: int, *, seed: int = 1, noise: float = 0.01) -> Array:
    clean = dmd_reference.linear_system([0.97, 0.9 * np.exp(0.3j)], size, count, seed=seed)
    return np.asarray(clean + noise * np.random.default_rng(seed).standard_normal(clean.shape))


def assert_same_answer(one: Source, other: Source, chosen: OperatorSettings, snapshots: Array) -> None:
    batch, again = predict(one, chosen, HORIZONS), predict(other, chosen, HORIZONS)
    assert batch.report.rank.tolist() == again.report.rank.tolist()
    assert batch.moved.tolist() == again.moved.tolist()
    assert batch.report.debias_names() == again.report.debias_names()
    for index in range(len(HORIZONS)):
        wanted, found = (displacement(answer, snapshots, index) for answer in (batch, again))
        assert np.linalg.norm(found - wanted) <= 1e-7 * np.linalg.norm(wanted)
    for measure in ("spectral_radius", "residual", "backtest_error", "jump_scale", "ridge"):
        torch.testing.assert_close(
            getattr(batch.report, measure), getattr(again.report, measure), rtol=1e-6, atol=1e-9
        )


@both_observables
@every_method
@pytest.mark.parametrize("size", [1, 4, 11, 60])
def test_gram_and_vectors_give_one_answer(observable: Observable, method: str, size: int) -> None:
    snapshots = training(size, 14)
    chosen = OperatorSettings(observable, **{**MOVES, **METHODS[method]})
    assert_same_answer(vectors(snapshots), products(snapshots), chosen, snapshots)


@both_observables
@pytest.mark.parametrize("method", [one for one in METHODS if one != "delays"])  # which need stored vectors
@pytest.mark.parametrize("size", [1, 4])
def test_a_whole_segment_is_a_window_that_holds_all_of_it(
    observable: Observable, method: str, size: int
) -> None:
    options = {**MOVES, **METHODS[method]}
    snapshots = training(size, 120)
    forgetting = options.get("forgetting", 1.0)
    chosen = OperatorSettings(observable, **options)
    factors = streamed(snapshots, observable=observable, forgetting=forgetting)
    window = predict(vectors(snapshots), chosen, HORIZONS)
    whole = predict(factors, chosen, HORIZONS)
    assert whole.report.backtest_strides == window.report.backtest_strides
    # a window has one fold more, and its path: what competes for them, or is bounded by it, may differ
    if chosen.ridge is None or chosen.debias is None or chosen.rank_rule == "backtest" or chosen.max_jump:
        assert whole.report.backtest_error.isfinite().all()
        return
    assert whole.report.rank.tolist() == window.report.rank.tolist()
    for index in range(len(HORIZONS)):
        wanted, found = (displacement(answer, snapshots, index) for answer in (window, whole))
        assert np.linalg.norm(found - wanted) <= 1e-8 * np.linalg.norm(wanted)
    for measure in ("spectral_radius", "residual", "backtest_error"):
        torch.testing.assert_close(
            getattr(window.report, measure), getattr(whole.report, measure), rtol=1e-7, atol=1e-9
        )


@both_observables
def test_a_segment_without_a_tail_has_no_backtest(observable: Observable) -> None:
    snapshots = training(3, 30)
    told = streamed(snapshots, observable=observable, held_out=0)
    chosen = OperatorSettings(observable, **MOVES)
    batch = predict(told, chosen, [4])
    assert batch.report.backtest_strides == 0
    assert batch.report.predicted_error.isnan().all()
    assert batch.moved.all()
    window = displacement(predict(vectors(snapshots), chosen, [4]), snapshots)
    np.testing.assert_allclose(displacement(batch, snapshots), window, rtol=1e-8)


def node_history(seed: int, *, count: int = 10_000, size: int = 11, condition: float = 1e3) -> Array:
    """(T, size): as the paper's nodes, whatever they do, with a matrix of snapshots of that condition number."""
    rng = np.random.default_rng(seed)
    turning = [np.exp(1j * rng.uniform(0.001, 0.5)) for _ in range(size // 2)]
    raw = dmd_reference.linear_system(turning, size, count, seed=seed)
    raw = raw + 1e-3 * rng.standard_normal(raw.shape)
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    return np.asarray(left * np.geomspace(1.0, 1.0 / condition, size) @ right)


def test_the_papers_preset_is_the_textbook_formula() -> None:
    histories = [node_history(seed) for seed in range(2)]
    batch = predict(streamed(*histories, observable="state", held_out=8), PRESET, [1, 2500])
    assert batch.report.rank.tolist() == [11, 11]
    assert batch.moved.all()
    for block, history in enumerate(histories):
        before, after = history[:-1].T, history[1:].T
        assert np.linalg.cond(before) == pytest.approx(1e3, rel=0.01)
        operator = after @ np.linalg.pinv(before)  # U = F' pinv(F)
        for index, strides in enumerate((1, 2500)):
            true = np.linalg.matrix_power(operator, strides) @ history[-1] - history[-1]
            found = displacement(batch, history, index, block)
            assert np.linalg.norm(found - true) < 1e-6 * np.linalg.norm(true)


def noisy_pairs(noise: float, *, blocks: int = 300, size: int = 8, count: int = 60) -> list[Array]:
    """Slow oscillations that neither grow nor decay, observed with white noise."""
    return [
        dmd_reference.linear_system([np.exp(0.3j)], size, count, seed=seed, fixed_point=0.0)
        + noise * np.random.default_rng(1000 + seed).standard_normal((count, size))
        for seed in range(blocks)
    ]


def test_corrections_take_the_bias_of_noise_away() -> None:
    told = vectors(*noisy_pairs(0.5))

    def mean_modulus(debias: Debias) -> float:
        chosen = OperatorSettings("state", "fixed", 2, ridge=0.0, stabilize=False, debias=debias)
        return float(report(told, chosen)[0].spectral_radius.mean())

    plain = 1.0 - mean_modulus("none")
    assert plain > 0.02  # least squares takes noise for decay: Dawson et al. 2016, section 2.1
    assert abs(1.0 - mean_modulus("total_least_squares")) < plain / 3
    assert abs(1.0 - mean_modulus("forward_backward")) < plain / 3


def test_delays_see_what_one_number_hides() -> None:
    times = np.arange(200)[:, None]
    one = 0.98**times * np.cos(0.4 * times) + 0.95**times  # three modes, one weight
    chosen: dict[str, Any] = {"rank_rule": "fixed", "rank": 3, "ridge": 0.0, "always_move": True}
    true = one[13 + 20] - one[13]

    def error(delays: int) -> float:
        batch = predict(vectors(one[:14]), OperatorSettings(delays=delays, **chosen), [20])
        return float(np.linalg.norm(displacement(batch, one[:14]) - true) / np.linalg.norm(true))

    assert error(0) > 0.3
    assert error(2) < 1e-6


def test_forgetting_follows_a_system_that_changes() -> None:
    early = dmd_reference.linear_system([0.5], 30, 8, seed=3)
    late = dmd_reference.linear_system([0.95], 30, 60, seed=3)
    path = np.concatenate([early - early[-1] + late[0], late[1:]])
    known, true = path[:16], path[35] - path[15]

    def error(forgetting: float) -> float:
        chosen = OperatorSettings(rank_rule="fixed", rank=1, forgetting=forgetting, always_move=True)
        found = displacement(predict(products(known), chosen, [20]), known)
        return float(np.linalg.norm(found - true) / np.linalg.norm(true))

    assert error(0.5) < error(1.0) / 3


@both_observables
def test_a_bound_shortens_a_jump_and_says_so(observable: Observable) -> None:
    snapshots = training(40, 12)
    walked = float(np.linalg.norm(np.diff(snapshots, axis=0), axis=1).sum())
    free = predict(products(snapshots), OperatorSettings(observable, **MOVES), [40])
    wanted = displacement(free, snapshots)
    for told in (products(snapshots), vectors(snapshots)):
        bound = predict(told, OperatorSettings(observable, max_jump=0.05, **MOVES), [0.01, 40])
        found = displacement(bound, snapshots, 1)
        assert np.linalg.norm(found) == pytest.approx(0.05 * walked, rel=1e-9)
        shortened = float(bound.reports[1].jump_scale[0])
        np.testing.assert_allclose(found, wanted * shortened, rtol=1e-6, atol=1e-9)
        assert float(bound.reports[0].jump_scale[0]) == 1.0


def test_what_is_always_moved_moves_against_its_backtest() -> None:
    rng = np.random.default_rng(2)
    swing = np.cumsum(rng.standard_normal((12, 40)), axis=0)
    swing[8:] = swing[8] - 3 * (swing[8] - swing[7]) * np.arange(4)[:, None]
    careful = predict(products(swing), OperatorSettings(), [2])
    asked = predict(products(swing), OperatorSettings(always_move=True), [2])
    assert float(careful.report.backtest_error[0]) >= 1
    assert not careful.moved.any()
    assert asked.moved.all()
    assert np.linalg.norm(displacement(asked, swing)) > 0
