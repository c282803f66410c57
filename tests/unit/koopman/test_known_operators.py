"""Systems whose future is known: what comes out must be that future, or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast_server.koopman import (
    OperatorSettings,
    PredictionBatch,
    Products,
    TooFewSnapshotsError,
    Vectors,
    predict,
    report,
)

EXACT = OperatorSettings(rank_rule="fixed", rank=64, ridge=0.0)
EXACT_STATE = OperatorSettings(observable="state", rank_rule="fixed", rank=64, ridge=0.0)
FREE = OperatorSettings(rank_rule="fixed", rank=64, ridge=0.0, stabilize=False)


def products(*blocks: dmd_reference.Array) -> Products:
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*blocks))
    return Products(gram, dots, squared)


def displacement(
    batch: PredictionBatch, snapshots: np.ndarray, horizon: int = 0, block: int = 0
) -> np.ndarray:
    velocities = np.diff(snapshots, axis=0)
    coefficients = batch.velocity_coefficients[horizon, block].numpy()
    return np.asarray(
        coefficients @ velocities + float(batch.last_coefficients[horizon, block]) * snapshots[-1]
    )


def relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


SYSTEMS = {
    "real": [0.95, 0.7],
    "complex": [0.93 * np.exp(0.4j)],
    "real and complex": [0.97, 0.9 * np.exp(0.5j)],
    "negative": [0.9, -0.8],
    "growing, as asked": [1.05],
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("settings", [EXACT, EXACT_STATE], ids=["velocity", "state"])
def test_a_linear_system_is_continued(name: str, settings: OperatorSettings) -> None:
    settings = OperatorSettings(
        settings.observable, "fixed", rank=64, ridge=0.0, stabilize=name != "growing, as asked"
    )
    path = dmd_reference.linear_system(SYSTEMS[name], 50, 60)
    batch = predict(products(path[:12]), settings, [1, 10, 48])
    for index, steps in enumerate((1, 10, 48)):
        true = path[11 + steps] - path[11]
        assert relative(displacement(batch, path[:12], index), true) < 1e-6
    assert batch.moved.all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_eigenvalues_are_found(name: str) -> None:
    path = dmd_reference.linear_system(SYSTEMS[name], 50, 12)
    found = report(products(path), FREE)[0]
    wanted = {complex(value) for value in SYSTEMS[name]} | {
        np.conj(complex(value)) for value in SYSTEMS[name]
    }
    modulus = sorted(wanted, key=lambda value: (-abs(value), value.imag))
    values = found.eigenvalues[0].tolist()
    assert len(values) == int(found.rank[0]) == len(wanted)
    assert [abs(value) for value in values] == sorted((abs(value) for value in values), reverse=True)
    assert sorted(values, key=lambda value: (-round(abs(value), 6), value.imag)) == pytest.approx(
        modulus, abs=1e-6
    )
    assert float(found.spectral_radius[0]) == pytest.approx(max(map(abs, wanted)), abs=1e-7)
    assert float(found.residual[0]) < 1e-6
    assert float(found.backtest_error[0]) < 1e-5


def test_a_straight_line_goes_on_straight() -> None:
    # The eigenvalue is 1 exactly, where the geometric sum's quotient is 0 / 0.
    rng = np.random.default_rng(0)
    start, velocity = rng.standard_normal((2, 20))
    path = start + np.arange(6)[:, None] * velocity
    batch = predict(products(path), EXACT, [1, 2.5, 1e6])
    for index, strides in enumerate((1, 2.5, 1e6)):
        assert relative(displacement(batch, path, index), strides * velocity) < 1e-9
    assert float(batch.report.spectral_radius[0]) == pytest.approx(1.0, abs=1e-12)


def jordan_path(eigenvalue: float, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.standard_normal((30, 2)))
    block = np.array([[eigenvalue, 1.0], [0.0, eigenvalue]])
    velocity, weights, path = np.array([0.3, 1.0]), np.zeros(2), []
    for _ in range(count):
        path.append(basis @ weights)
        weights, velocity = weights + velocity, block @ velocity
    return np.array(path)


@pytest.mark.parametrize("eigenvalue", [0.9, 0.5])
def test_a_defective_operator_is_continued(eigenvalue: float) -> None:
    path = jordan_path(eigenvalue, 40)
    batch = predict(products(path[:10]), EXACT, [1, 30])
    for index, steps in enumerate((1, 30)):
        true = path[9 + steps] - path[9]
        assert relative(displacement(batch, path[:10], index), true) < 1e-5


def test_a_defective_operator_outside_the_disc_is_moved_on_its_schur_form() -> None:
    path = jordan_path(1.2, 10)
    batch = predict(products(path), EXACT, [1, 2000])
    assert float(batch.report.spectral_radius[0]) == pytest.approx(1.2, abs=1e-4)
    assert batch.moved.all()
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((30, 2)))[0]
    velocity = basis.T @ (path[-1] - path[-2])
    moved = basis @ (np.array([[1.0, 1.0], [0.0, 1.0]]) @ velocity)  # jordan_path's block, on the circle
    assert relative(displacement(batch, path), moved) < 1e-3
    assert np.linalg.norm(displacement(batch, path, 1)) < 1e9 * np.linalg.norm(path[-1])  # not 1.2 ** 2000
    free = predict(products(path), FREE, [1])
    assert relative(displacement(free, path), path_step(path, 1.2)) < 1e-5


def path_step(path: np.ndarray, eigenvalue: float) -> np.ndarray:
    longer = jordan_path(eigenvalue, len(path) + 1)
    return np.asarray(longer[-1] - longer[-2])


def test_unstable_eigenvalues_move_onto_the_unit_circle() -> None:
    path = dmd_reference.linear_system([1.1 * np.exp(0.3j)], 40, 12)
    batch = predict(products(path), EXACT, [10_000, 20_000.5])
    assert float(batch.report.spectral_radius[0]) == pytest.approx(1.1, abs=1e-6)
    for index in range(2):  # on the circle the geometric sum stays bounded
        assert (
            np.linalg.norm(displacement(batch, path, index)) < 10 * np.linalg.norm(path[-1] - path[-2]) / 0.3
        )
    onto = dmd_reference.Reference(path, observable="velocity", rank=2, stabilize=True)
    near = predict(products(path), EXACT, [7])
    assert relative(displacement(near, path), onto.displacement(7)) < 1e-7


def test_a_diverging_answer_is_no_answer() -> None:
    path = dmd_reference.linear_system([1.5], 40, 12)
    batch = predict(products(path), FREE, [20, 200, 1e4])  # 1.5 ** 200 = 1e35: finite, and absurd
    assert batch.moved[:, 0].tolist() == [True, False, False]
    assert (
        relative(displacement(batch, path), (1.5**31 - 1.5**11) / (1.5**11 - 1.5**10) * (path[11] - path[10]))
        < 1e-6
    )
    assert (batch.velocity_coefficients[1:] == 0).all()


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_weights_that_stay_are_not_moved(observable: str, value: float) -> None:
    settings = OperatorSettings(observable)  # type: ignore[arg-type]
    batch = predict(products(np.full((8, 5), value)), settings, [1, 7.5])
    assert not batch.moved.any()
    assert (batch.velocity_coefficients == 0).all()
    assert (batch.last_coefficients == 0).all()
    assert batch.report.rank.tolist() == [0]
    assert batch.report.spectral_radius.tolist() == [0.0]
    assert batch.report.eigenvalues.shape == (1, 0)
    assert batch.report.backtest_error.isnan().all()
    assert batch.report.residual.isnan().all()


def test_weights_that_came_to_rest_are_not_moved() -> None:
    path = np.concatenate([np.arange(6.0)[:, None] * np.ones(4), np.full((6, 4), 5.0)])
    batch = predict(products(path), OperatorSettings(), [3])
    assert not batch.moved.any()


def test_a_rank_above_the_systems_is_harmless() -> None:
    path = dmd_reference.linear_system([0.9], 30, 40)
    twin = np.hstack([path, path, np.zeros_like(path)])  # duplicated and dead weights
    batch = predict(products(twin[:12]), EXACT, [20])
    assert batch.report.rank.tolist() == [1]
    assert relative(displacement(batch, twin[:12]), twin[31] - twin[11]) < 1e-8


def test_oscillating_weights_come_back() -> None:
    path = np.ones((9, 1)) * np.arange(5.0) + (-1.0) ** np.arange(9)[:, None] * np.arange(5.0)
    batch = predict(products(path), EXACT, [1, 2])
    step = path[1] - path[0]  # the last snapshot has even parity, like the first
    if batch.moved[0, 0]:  # declining is as good: the held-out motion sums up to one swing
        assert relative(displacement(batch, path), step) < 1e-8
        assert np.linalg.norm(displacement(batch, path, 1)) < 1e-8
    assert report(products(path), EXACT)[0].eigenvalues[0].tolist() == pytest.approx([-1.0])


def test_half_a_swing_ahead_takes_the_real_part() -> None:
    path = (-1.0) ** np.arange(10)[:, None] * np.arange(1.0, 6.0)
    batch = predict(products(path), EXACT, [0.5, 1.0])
    assert batch.moved.all()
    assert relative(displacement(batch, path, 1), path[0] - path[1]) < 1e-9
    # velocity d = path[9] - path[8]; sum = -1 (i - 1) / (-1 - 1) = (i - 1) / 2, real part -1/2
    assert relative(displacement(batch, path), -0.5 * (path[9] - path[8])) < 1e-9


def test_a_huge_and_a_tiny_block_are_both_answered() -> None:
    path = dmd_reference.linear_system([0.9, 0.6], 30, 30)
    batch = predict(products(path[:12] * 1e120, path[:12] * 1e-120), EXACT, [10])
    for block, scale in enumerate((1e120, 1e-120)):
        found = displacement(batch, path[:12] * scale, block=block) / scale
        assert relative(found, path[21] - path[11]) < 1e-7


def test_products_that_are_not_finite_touch_no_other_block() -> None:
    path = dmd_reference.linear_system([0.9, 0.6], 30, 12)
    sound, mixed = products(path), products(path, path, path)
    mixed.velocity_gram[0, 3, 4] = torch.nan
    mixed.velocity_gram[2] = torch.inf
    for settings in (EXACT, EXACT_STATE):
        batch, alone = predict(mixed, settings, [3, 4.5]), predict(sound, settings, [3, 4.5])
        assert batch.moved.tolist() == [[False, True, False]] * 2
        assert batch.velocity_coefficients.isfinite().all()
        torch.testing.assert_close(batch.velocity_coefficients[:, 1], alone.velocity_coefficients[:, 0])
        assert batch.report.rank.tolist()[::2] == [0, 0]


def test_what_no_float64_operator_describes_has_rank_0() -> None:
    velocities = torch.tensor([[[1e-200], [1.0]]], dtype=torch.float64)
    batch = predict(Vectors(velocities, torch.ones(1, 1).double()), FREE, [3])
    assert batch.report.rank.tolist() == [0]
    assert not batch.moved.any()
    assert batch.displacement is not None
    assert (batch.displacement == 0).all()


@pytest.mark.parametrize(("observable", "least"), [("velocity", 3), ("state", 2)])
def test_too_few_snapshots_are_named(observable: str, least: int) -> None:
    settings = OperatorSettings(observable)  # type: ignore[arg-type]
    path = np.random.default_rng(0).standard_normal((least, 5))
    assert predict(products(path), settings, [1]).velocity_coefficients.shape == (1, 1, least - 1)
    with pytest.raises(TooFewSnapshotsError, match=f"{least - 1} snapshots held, {least} needed") as caught:
        predict(products(path[1:]), settings, [1])
    assert (caught.value.held, caught.value.needed) == (least - 1, least)


@pytest.mark.parametrize("horizon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_horizon_must_be_positive_and_finite(horizon: float) -> None:
    path = products(np.random.default_rng(0).standard_normal((5, 5)))
    with pytest.raises(ValueError, match="horizons"):
        predict(path, OperatorSettings(), [1.0, horizon])
    if horizon != 0:
        with pytest.raises(ValueError, match="offset"):
            predict(path, OperatorSettings(), [1.0], offset=horizon)
