"""Trajectories whose future is known: linear systems, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class LinearTrajectory:
    """w(i) = fixed + modes @ z(i), z(i+1) = A z(i), with one real and one complex pair of eigenvalues.

    Moduli are given per snapshot; `i` counts snapshots.
    """

    def __init__(
        self, size: int, seed: int = 0, real: float = 0.97, modulus: float = 0.95, angle: float = 0.3
    ) -> None:
        generator = np.random.default_rng(seed)
        self.modes = generator.standard_normal((3, size))
        self.fixed = generator.standard_normal(size)
        self.matrix = np.zeros((3, 3))
        self.matrix[0, 0] = real
        cosine, sine = modulus * np.cos(angle), modulus * np.sin(angle)
        self.matrix[1:, 1:] = [[cosine, -sine], [sine, cosine]]

    def at(self, index: int) -> Floats:
        """The weights after `index` snapshots."""
        state = np.linalg.matrix_power(self.matrix, index) @ np.ones(3)
        weights: Floats = self.fixed + state @ self.modes
        return weights

    def displacement(self, start: int, stop: int) -> Floats:
        """What the weights move from one snapshot to another."""
        return self.at(stop) - self.at(start)


def relative_error(given: npt.NDArray[np.floating], truth: Floats) -> float:
    """|given - truth| / |truth|."""
    return float(
        np.linalg.norm(np.asarray(given, np.float64).ravel() - truth.ravel()) / np.linalg.norm(truth)
    )
