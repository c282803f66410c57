"""Gram-space answers agree with whole matrices in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast_server.koopman import OperatorSettings, Products, predict, report

HORIZONS = (0.5, 1, 2.25, 7, 33.3)
SNAPSHOTS = dmd_reference.linear_system([1.02, 0.9 * np.exp(0.3j), -0.6], 60, 12, seed=1)
NOISY = SNAPSHOTS + 0.01 * np.random.default_rng(5).standard_normal(SNAPSHOTS.shape)


def products(*blocks: dmd_reference.Array) -> Products:
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*blocks))
    return Products(gram, dots, squared)


@pytest.mark.parametrize("snapshots", [SNAPSHOTS, NOISY], ids=["clean", "noisy"])
@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("stabilize", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("offset", [0.0, 1.25])
def test_agreement(
    snapshots: np.ndarray, observable: str, stabilize: bool, ridge: float, rank: int, offset: float
) -> None:
    window = products(snapshots)
    settings = OperatorSettings(observable, "fixed", rank, ridge=ridge, stabilize=stabilize)  # type: ignore[arg-type]
    known: dict[str, Any] = {"observable": observable, "rank": rank, "ridge": ridge, "stabilize": stabilize}
    reference = dmd_reference.Reference(snapshots, **known)
    batch = predict(window, settings, HORIZONS, offset)
    error = dmd_reference.backtest_error(snapshots, 3, **known)
    errors = dmd_reference.backtest_errors(snapshots, 3, **known)
    for index, horizon in enumerate(HORIZONS):
        true = reference.displacement(offset + horizon) - reference.displacement(offset)
        found = batch.velocity_coefficients[index, 0].numpy() @ np.diff(snapshots, axis=0)
        found += float(batch.last_coefficients[index, 0]) * snapshots[-1]
        tested = errors[min(math.ceil(offset + horizon), 3) - 1]
        assert bool(batch.moved[index, 0]) == (tested < 1)
        wanted = true if tested < 1 else np.zeros_like(true)
        # relative to where it got: a displacement between two offsets may cancel
        assert np.linalg.norm(found - wanted) < 1e-7 * np.linalg.norm(
            reference.displacement(offset + horizon)
        )
    assert float(batch.report.backtest_error[0]) == pytest.approx(error, rel=1e-6, abs=1e-6)
    assert float(batch.report.residual[0]) == pytest.approx(reference.residual, rel=1e-6, abs=1e-6)
    assert float(batch.report.spectral_radius[0]) == pytest.approx(
        np.abs(reference.fitted_eigenvalues).max(), rel=1e-8
    )
    linear = dmd_reference.linear_error(snapshots, 3)
    assert float(batch.report.backtest_error_linear[0]) == pytest.approx(linear, rel=1e-9)


def test_a_velocity_window_shorter_than_three_strides_of_motion_has_no_backtest() -> None:
    settings = OperatorSettings()
    short = report(products(SNAPSHOTS[:3]), settings)[0]
    assert short.backtest_strides == 0
    assert short.backtest_errors.shape == (1, 0)
    assert short.backtest_error.isnan().all()
    assert short.backtest_error_linear.isnan().all()
    longer = report(products(SNAPSHOTS[:4]), settings)[0]
    assert longer.backtest_strides == 1
    assert longer.backtest_error.isfinite().all()


@pytest.mark.parametrize("snapshots", [4, 7, 10, 12])
def test_errors_are_kept_for_every_stride(snapshots: int) -> None:
    path = NOISY[:snapshots]
    held_out = max(1, (snapshots - 1) // 3)
    settings = OperatorSettings(rank_rule="fixed", rank=1, ridge=1e-3)
    found = report(products(path), settings)[0]
    assert found.backtest_strides == held_out
    wanted = dmd_reference.backtest_errors(
        path, held_out, observable="velocity", rank=1, ridge=1e-3, stabilize=True
    )
    assert found.backtest_errors[0].tolist() == pytest.approx(wanted, rel=1e-7)
    assert float(found.backtest_errors[0, -1]) == float(found.backtest_error[0])


def test_the_backtest_halves_its_own_shorter_window() -> None:
    wander = np.cumsum(np.random.default_rng(1).standard_normal((12, 40)), axis=0)
    auto = report(products(wander), OperatorSettings())[0]
    assert auto.rank.tolist() == [6]  # of 12 snapshots
    known: dict[str, Any] = {"observable": "velocity", "rank": 4, "ridge": 1e-4, "stabilize": True}  # of 9
    assert float(auto.backtest_error[0]) == pytest.approx(
        dmd_reference.backtest_error(wander, 3, **known), rel=1e-7
    )


def test_a_swing_that_comes_back_has_no_score() -> None:
    rng = np.random.default_rng(1)
    swing = (-1.0) ** np.arange(9)[:, None] * rng.standard_normal(40) + 1e-9 * rng.standard_normal((9, 40))
    found = report(products(swing), OperatorSettings())[0]
    assert found.backtest_strides == 2
    assert found.backtest_error.tolist() == [float("inf")]
    assert float(found.backtest_errors[0, 0]) < 1e-6
