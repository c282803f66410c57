"""Snapshots on a uniform clock: training is nearly autonomous in cumulative learning rate, not in steps (design §2).

Snapshots ``w_1 … w_m`` are taken at clocks ``t_1 < … < t_m`` that a learning-rate schedule makes uneven. A spline
through them, read off on a uniform grid that ends exactly at ``t_m``, is a matrix P with ``W' = W Pᵀ``. Rows of P sum
to 1, so the velocities ``v_j = w_{j+1} - w_j`` are combined among themselves, ``V' = V T``, and nothing as long as the
weights is touched: ``G' = Tᵀ G T``. Displacements start from ``w_m``, which is on the grid and stays as it is.

The splines are interpolating ones of odd degree with not-a-knot ends (de Boor, *A Practical Guide to Splines*, 2001,
chapters IX, X and XIII). Natural ends are wrong here: they set the curvature of a decay to zero where it is largest,
which costs two to three digits. Cubic is the least; the degree rises to 9 as long as errors of the snapshots are not
amplified by more than a factor of `_GENTLE`: where the clock is nearly even, a higher degree costs next to nothing and
gains two digits and more, and where it has a kink, the cubic is best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = [
    "Resampling",
    "UnevenClockError",
    "resample_dots",
    "resample_gram",
    "resample_vectors",
    "resampling",
    "stored_coefficients",
]

_DEGREES = (3, 5, 7, 9)
_GENTLE = 3.0
"""A degree above 3 may amplify errors of the snapshots by this factor."""
_MOST_AMPLIFIED = 16.0
"""Beyond this amplification even the cubic spline is refused."""
_LONG = 128
"""Longer windows keep to the cubic: their gaps are short, and every degree solves m equations with m right sides."""
_EVEN = 1e-13
"""Snapshots closer to the grid than this share of the window are on it."""
_RESOLUTION = 2.0**-40
"""A gap below this share of the clock's own size is rounding: its length is known to fewer than 12 bits."""
_LEAST_SPAN = 1e-290
"""A window shorter than this on its clock cannot be divided by safely."""


class UnevenClockError(ValueError):
    """Clocks that snapshots cannot be resampled on: they do not rise, or they are too uneven."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """From m snapshots as they were taken to m snapshots on a uniform clock; M = m - 1 velocities.

    Attributes:
        snapshots: (m, m) float64, P: resampled snapshot i is the sum of ``snapshots[i, j]`` times snapshot j.
        velocities: (M, M) float64, T: resampled velocity i is the sum of ``velocities[j, i]`` times velocity j.
        grid_spacing: clock between resampled snapshots, > 0: the new stride. Unit: of the clock.
        degree: of the spline; 1 for clocks that were uniform already.
        amplification: errors of the snapshots grow by this factor at most (the greatest sum of absolute values in a
            row of P), in 1..16.
    """

    snapshots: Tensor
    velocities: Tensor
    grid_spacing: float
    degree: int
    amplification: float


def resampling(times: Sequence[float]) -> Resampling:
    """How to resample snapshots to a uniform clock, of which the first and the last are left where they are.

    Refused are clocks so uneven that the spline swings between the snapshots: as soon as its values may be more than
    16 times as wrong as the snapshots are. What that allows depends on the pattern. The largest gap over the smallest,
    for 12 snapshots: 1,800 where gaps shrink or grow steadily (a learning rate that decays to a thousandth of itself
    within the window), 26 for one sudden change in the middle of the window, 18 for one long gap, 12 for long and
    short gaps in turns.

    Args:
        times: m >= 2 finite clocks of the snapshots, oldest first, rising.

    Raises:
        UnevenClockError: the clocks do not rise, not by more than rounding, or too unevenly (see above).
        ValueError: fewer than two clocks, or one that is not finite.
    """
    spacing = _checked_spacing(times)
    count = len(times)
    position = torch.tensor([(t - times[-1]) / (times[-1] - times[0]) for t in times], dtype=torch.float64)
    grid = torch.arange(1 - count, 1, dtype=torch.float64) / (count - 1)
    identity = torch.eye(count, dtype=torch.float64)
    if float((position - grid).abs().max()) <= _EVEN:
        return Resampling(identity, identity[1:, 1:], spacing, 1, 1.0)
    matrix, degree, amplified = _smoothest(position, grid)
    if not amplified <= _MOST_AMPLIFIED:
        gaps = [late - early for early, late in pairwise(times)]
        raise UnevenClockError(
            f"the clock is too uneven to resample: gaps of {min(gaps):.3g} to {max(gaps):.3g} would amplify the "
            f"snapshots' errors {amplified:.3g} times, at most {_MOST_AMPLIFIED:g} are allowed"
        )
    velocities = -(matrix[1:] - matrix[:-1]).cumsum(dim=1)[:, :-1].T.contiguous()
    return Resampling(matrix, velocities, spacing, degree, amplified)


def resample_gram(gram: Tensor, velocities: Tensor) -> Tensor:
    """Gram of the resampled velocities, ``Tᵀ G T``, exactly symmetric.

    Args:
        gram: (B, M, M) float64, of the stored velocities.
        velocities: (M, M) float64, `Resampling.velocities`.
    """
    turned = velocities.T @ gram @ velocities
    return (turned + turned.mT) / 2


def resample_dots(dots: Tensor, velocities: Tensor) -> Tensor:
    """(B, M) products of the resampled velocities with a fixed vector, from those of the stored ones (B, M)."""
    return dots @ velocities


def resample_vectors(vectors: Tensor, velocities: Tensor) -> Tensor:
    """(B, M, s) resampled velocities, from the stored ones (B, M, s)."""
    return velocities.T @ vectors


def stored_coefficients(coefficients: Tensor, velocities: Tensor) -> Tensor:
    """(…, M) coefficients on the stored velocities that make what `coefficients` (…, M) make of the resampled."""
    return coefficients @ velocities.T


def _checked_spacing(times: Sequence[float]) -> float:
    """Mean gap, for clocks that have one."""
    if len(times) < 2:
        raise ValueError(f"resampling takes at least 2 clocks, not {len(times)}")
    if not all(math.isfinite(time) for time in times):
        raise ValueError("clocks must be finite")
    gaps = [late - early for early, late in pairwise(times)]
    span = times[-1] - times[0]
    resolved = _RESOLUTION * max(abs(times[0]), abs(times[-1]))
    if not (min(gaps) > 0 and min(gaps) >= resolved and span >= _LEAST_SPAN):
        raise UnevenClockError(
            f"clocks must rise from snapshot to snapshot, by more than rounding: the smallest gap is {min(gaps):.3g}"
        )
    if not math.isfinite(span):
        raise UnevenClockError("clocks lie farther apart than a float can say")
    return span / (len(times) - 1)


def _smoothest(position: Tensor, grid: Tensor) -> tuple[Tensor, int, float]:
    """Interpolation matrix of the highest degree that is gentle, else of the lowest; its degree, amplification."""
    count = len(position)
    degrees = [degree for degree in _DEGREES if degree < count] or [count - 1]
    best = _amplifying(position, grid, degrees[0])
    for degree in degrees[1:] if count <= _LONG else []:
        candidate = _amplifying(position, grid, degree)
        if max(best[2], candidate[2]) > _GENTLE:
            break
        best = candidate
    return best


def _amplifying(position: Tensor, grid: Tensor, degree: int) -> tuple[Tensor, int, float]:
    """Interpolation matrix of that degree, the degree, and by how much it may amplify errors; NaN where singular."""
    matrix = _interpolation(position, grid, degree)
    return matrix, degree, float(matrix.abs().sum(dim=1).max())


def _interpolation(position: Tensor, grid: Tensor, degree: int) -> Tensor:
    """(m, m) values at `grid` of the splines that are 1 at one position and 0 at the others. NaN where singular."""
    at_positions = _basis(position, position, degree)
    at_grid = _basis(grid, position, degree)
    solved: Tensor
    solved, failed = torch.linalg.solve_ex(at_positions, at_grid, left=False)
    if int(failed) or not bool(solved.isfinite().all()):
        return torch.full_like(at_grid, torch.nan)
    solved[0], solved[-1] = 0.0, 0.0  # the ends are on the grid: exactly as they were
    solved[0, 0], solved[-1, -1] = 1.0, 1.0
    return solved


def _basis(points: Tensor, position: Tensor, degree: int) -> Tensor:
    """(points, m) B-splines on the not-a-knot knots of `position`, by the recursion of Cox and de Boor."""
    count = len(position)
    drop = (degree + 1) // 2  # even degrees come without inner knots only: the polynomial through all
    inner = position[drop : count - drop] if count > degree + 1 else position[:0]
    knots = torch.cat([position[:1].expand(degree + 1), inner, position[-1:].expand(degree + 1)])
    span = torch.searchsorted(knots[degree + 1 : count].contiguous(), points, right=True) + degree
    values = torch.zeros(len(points), len(knots) - 1, dtype=points.dtype)
    values.scatter_(1, span[:, None], 1.0)
    for order in range(1, degree + 1):
        width = knots[order:] - knots[:-order]
        share = (points[:, None] - knots[: -order - 1]) / width[:-1].where(width[:-1] > 0, torch.inf)
        rest = (knots[order + 1 :] - points[:, None]) / width[1:].where(width[1:] > 0, torch.inf)
        values = share * values[:, :-1] + rest * values[:, 1:]
    return values
