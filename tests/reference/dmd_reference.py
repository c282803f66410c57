"""Dynamic mode decomposition with whole matrices, in float64 NumPy: slow, plain, written apart from koopcast.

Snapshots are rows of an array (T, n). Everything that the service reads off Gram matrices is done here on
the vectors: `numpy.linalg.pinv` for least squares, `numpy.linalg.svd` for the modes, loops for sums.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear_system(
    eigenvalues: list[complex], dimensions: int, count: int, *, seed: int = 0, fixed_point: float = 1.0
) -> Array:
    """(count, dimensions): w(t) = fixed point + random modes; a complex eigenvalue stands for its pair."""
    random = np.random.default_rng(seed)
    times = np.arange(count)[:, None]
    weights = np.tile(fixed_point * random.standard_normal(dimensions), (count, 1))
    for value in eigenvalues:
        power = complex(value) ** times
        weights += power.real * random.standard_normal(dimensions)
        if complex(value).imag:
            weights += power.imag * random.standard_normal(dimensions)
    return weights


def window_products(*blocks: Array) -> tuple[Array, Array, Array]:
    """Tell what a window of these blocks knows: velocity Grams, velocities on the last snapshot, its square."""
    velocities = [np.diff(snapshots, axis=0) for snapshots in blocks]
    grams = [block @ block.T for block in velocities]
    dots = [block @ snapshots[-1] for block, snapshots in zip(velocities, blocks, strict=True)]
    return np.stack(grams), np.stack(dots), np.array([snapshots[-1] @ snapshots[-1] for snapshots in blocks])


class Reference:
    """An operator on n-sized vectors, A = Y X⁺ (ridge: on stacked matrices), seen in r POD modes."""

    def __init__(
        self, snapshots: Array, *, observable: str, rank: int, ridge: float = 0.0, stabilize: bool = False
    ) -> None:
        """Fit on all snapshots."""
        self.observable = observable
        vectors = np.diff(snapshots, axis=0).T if observable == "velocity" else np.asarray(snapshots).T
        inputs, outputs = vectors[:, :-1], vectors[:, 1:]
        size = len(vectors)
        modes, singular, _ = np.linalg.svd(inputs, full_matrices=False)
        self.modes = modes[:, :rank]
        kept = self.modes @ (self.modes.T @ inputs)
        alpha = ridge * singular[0]
        stacked = np.hstack([kept, alpha * np.eye(size)])
        operator = np.hstack([outputs, np.zeros((size, size))]) @ np.linalg.pinv(stacked, rcond=1e-13)
        self.reduced = self.modes.T @ operator @ self.modes
        self.residual = float(np.linalg.norm(outputs - self.modes @ self.reduced @ self.modes.T @ inputs))
        self.residual /= float(np.linalg.norm(outputs))
        self.fitted_eigenvalues, self.vectors = np.linalg.eig(self.reduced)
        self.eigenvalues = self.fitted_eigenvalues.astype(complex)
        if stabilize:
            self.eigenvalues /= np.maximum(1.0, np.abs(self.eigenvalues))
        self.amplitudes = np.linalg.solve(self.vectors, self.modes.T @ vectors[:, -1] + 0j)

    def displacement(self, strides: float) -> Array:
        """ŵ(strides) - ŵ(0), both counted from the last snapshot."""
        total = np.zeros(len(self.eigenvalues), dtype=complex)
        for index, value in enumerate(self.eigenvalues):
            if self.observable == "state":
                total[index] = value**strides - 1.0
            elif float(strides).is_integer():
                total[index] = sum(value**i for i in range(1, int(strides) + 1))
            elif abs(value - 1.0) < 1e-12:
                total[index] = strides
            else:
                total[index] = value * (value**strides - 1.0) / (value - 1.0)
        return np.asarray(self.modes @ (self.vectors @ (total * self.amplitudes)).real)


def backtest_error(snapshots: Array, held_out: int, **settings: object) -> float:
    """|predicted - true| / |true| displacement over the last `held_out` strides."""
    known = snapshots[: len(snapshots) - held_out]
    predicted = Reference(known, **settings).displacement(held_out)  # type: ignore[arg-type]
    true = snapshots[-1] - known[-1]
    return float(np.linalg.norm(predicted - true) / np.linalg.norm(true))


def backtest_errors(snapshots: Array, held_out: int, **settings: object) -> list[float]:
    """Errors after 1 … `held_out` strides, of fits that end `held_out` and half as many strides before the last snapshot.

    All fits together: the root of the summed squared errors over the summed squared displacements.
    """
    wrong, moved = np.zeros(held_out), np.zeros(held_out)
    for reach in {held_out, (held_out + 1) // 2}:
        known = snapshots[: len(snapshots) - reach]
        if len(known) < (3 if settings["observable"] == "velocity" else 2):
            continue
        reference = Reference(known, **settings)  # type: ignore[arg-type]
        for strides in range(1, reach + 1):
            true = snapshots[len(known) - 1 + strides] - known[-1]
            wrong[strides - 1] += np.sum((reference.displacement(strides) - true) ** 2)
            moved[strides - 1] += np.sum(true**2)
    return list(np.sqrt(wrong / moved))


def linear_error(snapshots: Array, held_out: int) -> float:
    """The same for the better of the last and the mean velocity carried on."""
    known = snapshots[: len(snapshots) - held_out]
    true = snapshots[-1] - known[-1]
    last, mean = known[-1] - known[-2], (known[-1] - known[0]) / (len(known) - 1)
    return float(
        min(np.linalg.norm(held_out * guess - true) for guess in (last, mean)) / np.linalg.norm(true)
    )


def pair_factor(vectors: Array, forgetting: float = 1.0) -> Array:
    """(2 s, 2 s): R of the rows ``[x_t, x_{t+1}]`` of a path (T, s), the newest of weight 1."""
    pairs = np.hstack([vectors[:-1], vectors[1:]])
    age = np.arange(len(pairs))[::-1, None]
    factor = np.linalg.qr(pairs * forgetting ** (age / 2.0), mode="r")
    square = np.zeros((pairs.shape[1], pairs.shape[1]))
    square[: len(factor)] = factor
    return square


def stacked(vectors: Array, delays: int) -> Array:
    """(T - delays, (delays + 1) s): each vector with those before it, the newest first (Hankel)."""
    return np.hstack([vectors[delays - lag : len(vectors) - lag] for lag in range(delays + 1)])


def weighted_operator(vectors: Array, forgetting: float) -> Array:
    """(s, s): least squares from each row of a path to the next, each pair ρ times as heavy as the one after it."""
    age = np.arange(len(vectors) - 1)[::-1]
    weight = np.sqrt(forgetting**age)[:, None]
    transposed, *_ = np.linalg.lstsq(vectors[:-1] * weight, vectors[1:] * weight, rcond=None)
    return np.asarray(transposed.T)


def forward_backward_operator(vectors: Array, rank: int) -> tuple[Array, Array]:
    """POD modes (s, r) and the operator (r, r): Dawson et al. 2016 (Exp. Fluids 57), section 2.4.

    Both operators stand in the POD basis of the inputs. The principal root is taken.
    """
    inputs, outputs = vectors[:-1].T, vectors[1:].T
    modes = np.linalg.svd(inputs, full_matrices=False)[0][:, :rank]
    before, after = modes.T @ inputs, modes.T @ outputs
    forward, backward = after @ np.linalg.pinv(before), before @ np.linalg.pinv(after)
    return modes, np.real(scipy.linalg.sqrtm(forward @ np.linalg.inv(backward)))


def continued(operator: Array, start: Array, strides: float, observable: str) -> Array:
    """How far any operator gets from `start` in any number of strides, by `scipy.linalg.logm` and `expm`."""
    power = scipy.linalg.expm(strides * scipy.linalg.logm(operator))
    eye = np.eye(len(operator))
    if observable == "velocity":
        return np.real(operator @ (power - eye) @ np.linalg.solve(operator - eye, start))
    return np.real((power - eye) @ start)
