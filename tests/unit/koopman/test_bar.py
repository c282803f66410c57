"""The bar: 3 modes in 100,000 dimensions, float32, 12 snapshots, 5 windows ahead, through a real window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast.partition import plan_blocks
from koopcast.window import Window
from koopcast.wire import TensorSpec
from koopcast_server.koopman import OperatorSettings, Products, predict

SIZE, SNAPSHOTS, AHEAD = 100_000, 12, 60
LARGE = 400_000  # long enough for products in float32, see `koopcast.window.gram`
SYSTEMS = {
    "fast": [0.95, 0.9 * np.exp(0.3j)],
    "middle": [0.97, 0.95 * np.exp(0.3j)],
    "slow": [0.98, 0.97 * np.exp(0.2j)],
    "mixed": [0.99, 0.9 * np.exp(0.5j)],
}


def relative_error(eigenvalues: list[complex], settings: OperatorSettings, size: int = SIZE) -> float:
    path = dmd_reference.linear_system(eigenvalues, size, SNAPSHOTS + AHEAD)
    plan = plan_blocks({"weights": TensorSpec("float32", (size,))}, "network")
    window = Window(plan, SNAPSHOTS, snapshot_dtype=torch.float32, window_dtype=torch.float32)
    for snapshot in path[:SNAPSHOTS]:
        window.spare.copy_(torch.from_numpy(snapshot))
        window.publish()
    products = window.products(0)
    assert products is not None
    batch = predict(Products(*products), settings, [AHEAD])
    out = torch.empty(size)
    window.combine(0, batch.velocity_coefficients[0], batch.last_coefficients[0], out)
    true = path[-1] - path[SNAPSHOTS - 1]
    return float(np.linalg.norm(out.double().numpy() - true) / np.linalg.norm(true))


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_ridge(name: str) -> None:
    assert relative_error(SYSTEMS[name], OperatorSettings(ridge=0.0)) < 1e-5


@pytest.mark.parametrize("name", SYSTEMS)
def test_with_the_defaults(name: str) -> None:
    assert relative_error(SYSTEMS[name], OperatorSettings()) < 2e-5


@pytest.mark.parametrize("name", ["middle", "slow"])
def test_with_products_in_float32(name: str) -> None:
    assert relative_error(SYSTEMS[name], OperatorSettings(), LARGE) < 2e-5
