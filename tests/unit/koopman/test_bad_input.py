"""Windows that nobody hopes for, and their defined answers.

Never does `predict` or `report` raise for a window with enough snapshots, and never is an answer not finite. By window:

==============================  ========================================================================================
window                          answer
==============================  ========================================================================================
constant, all zero              rank 0, no prediction
came to rest                    no prediction: nothing moved where the back-test looked
2 snapshots (state)             rank 1, no back-test: moves as far as ridge and stabilisation let two vectors say
3 snapshots (velocity)          rank 1, no back-test: the one eigenvalue is the ratio of the two velocities
fewer than that                 `TooFewSnapshotsError`
one weight (n = 1)              as any other: one eigenvalue; more with delays
n < m, n much larger than m     one answer, from the vectors or the Gram
rank one, duplicated weights    the rank is that of what differs; twins get the same displacement
duplicated snapshots            a snapshot given twice is a step of zero: low scores, or no prediction; finite
oscillating                     eigenvalue -1; an even number of strides ahead it is where it was
diverging                       kept from growing further (`stabilize`); without it, no prediction once beyond 1e30 steps
diverging to overflow           no prediction: products or weights are not finite
one huge and one tiny block     both answered, each on its own scale
one huge and one tiny tensor    in one block: the huge one rules, the tiny one is answered with what digits are left
not finite (NaN, infinity)      that block: rank 0, no prediction; all others are untouched
defective                       continued through powers of the operator: its eigenvectors do not exist
nearly defective                likewise: no coefficient grows with the condition of the eigenvectors
defective and unstable          eigenvalues moved onto the unit circle on the Schur form
entries 1e-250 of each other    as if they were zero: LAPACK would not converge
==============================  ========================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import (
    Observable,
    OperatorSettings,
    PredictionBatch,
    Source,
    Streamed,
    predict,
    report,
)
from sources import displacement, products, streamed, vectors

FORMS = ["gram", "vectors", "streamed"]
HORIZONS = (0.5, 1.0, 10.0, 1e6)
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "free": {"rank_rule": "energy", "energy": 1.0, "ridge": 0.0, "stabilize": False, "always_move": True},
    "total least squares": {"debias": "total_least_squares", "rank_rule": "gavish_donoho"},
    "forward backward": {"debias": "forward_backward", "always_move": True},
    "everything competes": {"rank_rule": "backtest", "ridge": None, "debias": None, "max_jump": 5.0},
}
LINE = np.arange(12.0)[:, None] * np.array([1.0, -2.0, 0.5])
LINEAR = dmd_reference.linear_system([0.95, 0.7], 3, 12, seed=2)
WINDOWS: dict[str, Array] = {
    "constant": np.full((12, 3), 7.0),
    "all zero": np.zeros((12, 3)),
    "came to rest": LINE[np.minimum(np.arange(12), 5)],
    "straight line": LINE,
    "one weight": LINEAR[:, :1],
    "rank one": np.outer(0.9 ** np.arange(12), [1.0, 2.0, 3.0]),
    "duplicated weights": np.hstack([LINEAR[:, :1]] * 3),
    "duplicated snapshots": np.repeat(LINEAR[:6], 2, axis=0),
    "one snapshot differs": np.eye(12)[:, 5:6] * np.ones(3),
    "oscillating": np.outer((-1.0) ** np.arange(12), [1.0, 2.0, 3.0]) + 5.0,
    "diverging": np.outer(3.0 ** np.arange(12), [1.0, 2.0, 3.0]),
    "diverging to overflow": np.outer(1e25 ** np.arange(12), [1.0, 2.0, 3.0]),
    "beyond float64": np.outer((-1.0) ** np.arange(12), [1e308, 1.7e308, 1.0]),
    "vanishing": np.outer(1e-25 ** np.arange(12), [1.0, 2.0, 3.0]),
    "denormal": LINEAR * 1e-310,
    "huge": LINEAR * 1e300,
    "huge and tiny weights": LINEAR * np.array([1e150, 1.0, 1e-150]),
    "huge common part": LINEAR + 1e15,
    "random": np.random.default_rng(0).standard_normal((12, 3)),
}


def sources(observable: Observable, form: str, *blocks: Array) -> Source:
    with np.errstate(all="ignore"):  # overflow in these windows is the point
        if form == "gram":
            return products(*blocks, snapshot_epsilon=2.0**-24)
        if form == "vectors":
            return vectors(*blocks, snapshot_epsilon=2.0**-24)
        return streamed(*blocks, observable=observable)


def assert_defined(batch: PredictionBatch) -> None:
    for numbers in (batch.velocity_coefficients, batch.last_coefficients, batch.displacement):
        if numbers is not None and numbers.numel():
            assert numbers.isfinite().all()
            assert (numbers[~batch.moved] == 0).all()
    told = batch.report
    assert told.spectral_radius.isfinite().all()
    assert ((told.jump_scale >= 0) & (told.jump_scale <= 1)).all()
    assert not (told.predicted_error < 0).any()
    assert told.residual[told.rank == 0].isnan().all()


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_window_has_a_defined_answer(observable: Observable, form: str, method: str) -> None:
    chosen = OperatorSettings(observable, **METHODS[method])
    for window in WINDOWS.values():
        told = sources(observable, form, window[-6:])
        assert_defined(predict(told, chosen, HORIZONS, 0.25))
        report(told, chosen, 2.0)
    for length in (12, 5, 4, 3):
        windows = {name: window[-length:] for name, window in WINDOWS.items() if window.shape[1] == 3}
        told = sources(observable, form, *windows.values())
        batch = predict(told, chosen, HORIZONS, 0.25)
        assert_defined(batch)
        report(told, chosen, 2.0)
        answer = dict(zip(windows, batch.moved.any(dim=0).tolist(), strict=True))
        rank = dict(zip(windows, batch.report.rank.tolist(), strict=True))
        assert rank["constant"] == rank["all zero"] == 0
        assert not answer["constant"]
        assert not answer["all zero"]
        if not chosen.always_move:
            assert not answer["came to rest"]


@pytest.mark.parametrize("form", ["gram", "vectors"])
def test_two_states_and_three_velocities_say_what_they_can(form: str) -> None:
    short = np.array([[1.0, 0.0], [2.0, 0.0], [2.5, 0.0]])
    batch = predict(sources("velocity", form, short), OperatorSettings(ridge=0.0), [1.0, 1e6])
    assert batch.report.rank.tolist() == [1]
    assert batch.report.backtest_strides == 0
    assert batch.report.eigenvalues[0].tolist() == pytest.approx([0.5])
    assert displacement(batch, short).tolist() == pytest.approx([0.25, 0.0])
    assert displacement(batch, short, 1).tolist() == pytest.approx(
        [0.5, 0.0]
    )  # 0.5 + 0.25 + …, less the first
    state = short[1:]
    free = OperatorSettings("state", ridge=0.0, stabilize=False)
    batch = predict(sources("state", form, state), free, [1.0])
    assert batch.report.rank.tolist() == [1]
    assert displacement(batch, state).tolist() == pytest.approx([0.625, 0.0])  # 2.5 · 1.25


@pytest.mark.parametrize("form", FORMS)
def test_twins_stay_twins(form: str) -> None:
    twins = WINDOWS["duplicated weights"]
    told = sources("velocity", form, twins)
    batch = predict(told, OperatorSettings(), [4])
    assert batch.moved.all()
    assert batch.report.rank.tolist() == [1]
    found = displacement(batch, twins)
    np.testing.assert_allclose(found, np.full(3, found[0]), rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_rank_one_goes_on_exactly(form: str) -> None:
    window = WINDOWS["rank one"]
    exact = OperatorSettings(rank_rule="fixed", rank=3, ridge=0.0)
    batch = predict(sources("velocity", form, window), exact, [5])
    assert batch.report.rank.tolist() == [1]
    np.testing.assert_allclose(displacement(batch, window), window[-1] * (0.9**5 - 1.0), rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_an_oscillation_is_where_it_was_after_two_strides(form: str) -> None:
    window = WINDOWS["oscillating"]
    chosen = OperatorSettings(rank_rule="fixed", rank=1, ridge=0.0, always_move=True)
    told = sources("velocity", form, window)
    assert report(told, chosen)[0].eigenvalues[0].tolist() == pytest.approx([-1.0])
    batch = predict(told, chosen, [1, 2])
    np.testing.assert_allclose(displacement(batch, window), window[0] - window[-1], rtol=1e-9)
    np.testing.assert_allclose(displacement(batch, window, 1), 0.0, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_growth_is_stopped_or_refused(form: str) -> None:
    window = WINDOWS["diverging"]
    told = sources("velocity", form, window)
    held = predict(told, OperatorSettings(rank_rule="fixed", rank=1, ridge=0.0, always_move=True), [1, 1000])
    speed = window[-1] - window[-2]
    np.testing.assert_allclose(displacement(held, window, 1), 1000 * speed, rtol=1e-6)
    free = OperatorSettings(rank_rule="fixed", rank=1, ridge=0.0, stabilize=False, always_move=True)
    batch = predict(told, free, [2, 1000])
    assert batch.moved[:, 0].tolist() == [True, False]
    np.testing.assert_allclose(displacement(batch, window), (3.0 + 9.0) * speed, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_huge_and_tiny_blocks_are_answered_on_their_own_scale(form: str) -> None:
    wanted = displacement(predict(sources("velocity", form, LINEAR), OperatorSettings(), [4]), LINEAR)
    scales = (1e140, 1e-140, 1.0)
    told = sources("velocity", form, *(LINEAR * scale for scale in scales))
    batch = predict(told, OperatorSettings(), [4])
    for block, scale in enumerate(scales):
        found = displacement(batch, LINEAR * scale, block=block)
        np.testing.assert_allclose(found / scale, wanted, rtol=1e-6)


def broken(told: Source) -> None:
    """Put what is not finite into blocks 0 and 2, in all the places."""
    if isinstance(told, Streamed):
        told.factor[0, 1, 2] = torch.nan
        told.factor[2, 0, 0] = torch.inf
        told.vectors[2, 1] = torch.nan
    else:
        numbers = getattr(told, "velocity_gram" if hasattr(told, "velocity_gram") else "velocities")
        numbers[0, 1, 2] = torch.nan
        numbers[2] = torch.inf


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_stays_alone(observable: Observable, form: str, method: str) -> None:
    chosen = OperatorSettings(observable, **METHODS[method])
    mixed = sources(observable, form, LINEAR, LINEAR, LINEAR)
    broken(mixed)
    batch = predict(mixed, chosen, [3, 4.5])
    alone = predict(sources(observable, form, LINEAR), chosen, [3, 4.5])
    assert_defined(batch)
    assert not batch.moved[:, ::2].any()
    assert batch.report.rank[::2].tolist() == [0, 0]
    assert batch.moved[:, 1].tolist() == alone.moved[:, 0].tolist()
    np.testing.assert_allclose(
        displacement(batch, LINEAR, block=1), displacement(alone, LINEAR), rtol=1e-6, atol=1e-9
    )


def jordan(eigenvalue: float, coupling: float, apart: float, count: int = 12) -> Array:
    """(T, 30): weights whose velocities obey [[λ, coupling], [0, λ + apart]]."""
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((30, 2)))[0]
    block = np.array([[eigenvalue, coupling], [0.0, eigenvalue + apart]])
    velocity, weights, path = np.array([0.3, 1.0]), np.zeros(2), []
    for _ in range(count):
        path.append(basis @ weights)
        weights, velocity = weights + velocity, block @ velocity
    return np.array(path)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-8, 1e-5])
@pytest.mark.parametrize("coupling", [1.0, 100.0])
@pytest.mark.parametrize("stabilize", [True, False])
def test_defective_and_nearly_defective_operators_are_continued(
    apart: float, coupling: float, stabilize: bool
) -> None:
    path = jordan(0.8, coupling, apart, 40)
    chosen = OperatorSettings(rank_rule="fixed", rank=2, ridge=0.0, stabilize=stabilize)
    for told in (products(path[:12]), vectors(path[:12])):
        batch = predict(told, chosen, [1, 2.5, 28])
        for index, strides in ((0, 1), (2, 28)):
            true = path[11 + strides] - path[11]
            found = displacement(batch, path[:12], index)
            assert np.linalg.norm(found - true) < 1e-4 * np.linalg.norm(true)
        between = displacement(batch, path[:12], 1)  # no blow-up between whole strides, either
        before, after = path[13] - path[11], path[14] - path[11]
        assert np.linalg.norm(between - (before + after) / 2) < 0.1 * np.linalg.norm(after)


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-3])
def test_a_defective_operator_outside_the_disc_grows_no_faster_than_its_strides(apart: float) -> None:
    path = jordan(1.1, 1.0, apart)
    chosen = OperatorSettings(rank_rule="fixed", rank=2, ridge=0.0, always_move=True)
    batch = predict(products(path), chosen, [1, 100, 1000])
    lengths = [np.linalg.norm(displacement(batch, path, index)) for index in range(3)]
    speed = np.linalg.norm(path[-1] - path[-2])
    assert lengths[0] < 2 * speed
    assert lengths[2] < 2 * 1000**2 * speed  # a Jordan block on the circle: the square of the strides
    assert lengths[1] > 50 * speed


def test_entries_that_lapack_stumbles_over_are_as_good_as_zero() -> None:
    # one weight blinks; the fits of it have entries 1e-249 of their largest, and no converging QR iteration
    blink = np.zeros((11, 2))
    blink[1] = 1e200
    wild = np.array([[0.0, -1e308, 1e308], [-1e308, -1.0, -1.0], [0.0, 0.0, 0.0], [5e-324, -1.0, 1.0]])
    wild = np.concatenate(
        [wild, [[5e-324, 1.0, -1.0], [5e-324, 0.0, 1e308], [-1.0, 1.0, 1.0], [-1e308, 0.0, -1e308]]]
    )
    everything = OperatorSettings("state", "backtest", debias=None, delays=3, stabilize=False)
    corrected = OperatorSettings(
        "state", "fixed", 4, ridge=None, debias="forward_backward", delays=3, stabilize=False
    )
    for chosen in (everything, corrected):
        for window in (blink, wild):
            assert_defined(predict(vectors(window), chosen, HORIZONS))
            report(vectors(window), chosen)
