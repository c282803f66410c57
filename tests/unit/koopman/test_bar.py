"""The bar: 3 modes in 100,000 dimensions, float32, 12 snapshots, 5 windows ahead, through a real window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast.window import Window
from koopcast_server.koopman import OperatorSettings, Products, predict

SIZE, SNAPSHOTS, AHEAD = 100_000, 12, 60
SYSTEMS = {
    "fast": [0.95, 0.9 * np.exp(0.3j)],
    "middle": [0.97, 0.95 * np.exp(0.3j)],
    "slow": [0.98, 0.97 * np.exp(0.2j)],
    "mixed": [0.99, 0.9 * np.exp(0.5j)],
}


def relative_error(eigenvalues: list[complex], settings: OperatorSettings) -> float:
    path = dmd_reference.linear_system(eigenvalues, SIZE, SNAPSHOTS + AHEAD)
    window = Window([0, SIZE], SNAPSHOTS, snapshot_dtype=torch.float32, window_dtype=torch.float32)
    for snapshot in path[:SNAPSHOTS]:
        window.spare.copy_(torch.from_numpy(snapshot))
        window.publish()
    batch = predict(Products(*window.products()), settings, [AHEAD])
    out = torch.empty(SIZE)
    window.combine(batch.velocity_coefficients[0], batch.last_coefficients[0], out)
    true = path[-1] - path[SNAPSHOTS - 1]
    return float(np.linalg.norm(out.double().numpy() - true) / np.linalg.norm(true))


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_ridge(name: str) -> None:
    assert relative_error(SYSTEMS[name], OperatorSettings(ridge=0.0)) < 1e-5


@pytest.mark.parametrize("name", SYSTEMS)
def test_with_the_defaults(name: str) -> None:
    assert relative_error(SYSTEMS[name], OperatorSettings()) < 2e-5
