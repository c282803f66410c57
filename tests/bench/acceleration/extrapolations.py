"""Other ways to look ahead along a path of weights than koopcast's operators. Arrays in, arrays out.

A path is an array (snapshots, weights), float64, oldest first, a stride apart. Each function gives candidates, (candidates,
weights), for one window of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "anderson", "measured_momentum", "slow_modes", "straight"]

Array = NDArray[np.float64]


def straight(path: Array, strides: Sequence[int]) -> Array:
    """On along the mean step of the window."""
    step = (path[-1] - path[0]) / (len(path) - 1)
    return np.stack([path[-1] + count * step for count in strides])


def measured_momentum(path: Array, strides: Sequence[int]) -> Array:
    """On along the newest step, which shrinks or grows as the steps of the window did: one eigenvalue for all weights.

    With ever more strides that is Aitken's extrapolation, and an outer step of momentum whose momentum is measured.
    """
    steps = np.diff(path, axis=0)
    before, after = steps[:-1], steps[1:]
    eigenvalue = float(np.sum(before * after) / max(float(np.sum(before * before)), np.finfo(float).tiny))
    sums = [np.sum(np.clip(eigenvalue, 0.0, 1.0) ** np.arange(1, count + 1)) for count in strides]
    return np.stack([path[-1] + total * steps[-1] for total in sums])


def anderson(path: Array, ridges: Sequence[float]) -> Array:
    """Regularised nonlinear acceleration: the mix of snapshots whose steps cancel best, for each ridge.

    Scieur, d'Aspremont & Bach, "Regularized nonlinear acceleration", NeurIPS 2016, algorithm 1.
    """
    steps = np.diff(path, axis=0)
    gram = steps @ steps.T
    scale = float(np.linalg.norm(gram, 2))
    found = []
    for ridge in ridges:
        ridged = gram + ridge * max(scale, np.finfo(float).tiny) * np.eye(len(gram))
        shares = np.linalg.solve(ridged, np.ones(len(gram)))
        found.append(shares / shares.sum() @ path[1:])
    return np.stack(found)


def slow_modes(path: Array, strides: Sequence[int], *, rank: int = 6, least: float = 0.9) -> Array:
    """Dynamic mode decomposition of the steps, of which only modes with |eigenvalue| >= `least` go on; none grows."""
    steps = np.diff(path, axis=0).T
    left, values, right = np.linalg.svd(steps[:, :-1], full_matrices=False)
    kept = min(rank, int(np.sum(values > 1e-10 * max(float(values[0]), np.finfo(float).tiny))))
    if kept == 0:
        return np.repeat(path[-1:], len(strides), axis=0)
    left, values, right = left[:, :kept], values[:kept], right[:kept]
    eigenvalues, modes = np.linalg.eig(left.T @ steps[:, 1:] @ right.T / values)
    shares, *_ = np.linalg.lstsq(modes, left.T @ steps[:, -1], rcond=None)
    slow = np.abs(eigenvalues) >= least
    kept_eigenvalues = eigenvalues[slow] / np.maximum(1.0, np.abs(eigenvalues[slow]))
    found = []
    for count in strides:
        sums = np.sum(kept_eigenvalues[:, None] ** np.arange(1, count + 1), axis=1)
        found.append(path[-1] + left @ np.real(modes[:, slow] @ (sums * shares[slow])))
    return np.stack(found)
