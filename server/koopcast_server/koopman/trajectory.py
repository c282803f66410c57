"""A block's path in *coordinates*: few numbers that keep all lengths and angles.

The operator needs nothing of n weights but their inner products (design §1). So every block gets a small space
with orthonormal axes in which its vectors are written, and everything after that, fits, back-tests, errors, is
plain linear algebra there:

- **dual** (`from_products`): axes and coordinates come from the Gram matrix, ``G = CᵀC`` with ``C = Λ^½ Wᵀ``. The
  axes are combinations of the window's vectors, so that an answer is one too.
- **primal** (`from_vectors`): where a block has fewer weights than the window has vectors, the weights are the
  coordinates. An answer is the displacement itself.

For the observable ``"state"`` the last snapshot gets an axis of its own, orthogonal to all velocities: the common
part of the weights never touches the digits of what changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from koopcast_server.koopman.clock import Resampling, resample_dots, resample_gram, resample_vectors
from koopcast_server.koopman.settings import Observable, TooFewSnapshotsError

__all__ = ["Products", "Trajectory", "Vectors", "from_products", "from_vectors", "joined_products"]

_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
_MANY = 2.0**62


@dataclass(frozen=True, slots=True)
class Products:
    """Inner products of a window, all float64 on the CPU; B blocks, M velocities, oldest first.

    Attributes:
        velocity_gram: (B, M, M), <v_i, v_j>.
        velocity_dot_last: (B, M), <v_j, w_last>; None: not known, which the velocity observable does without.
        last_squared: (B,), <w_last, w_last>.
        snapshot_epsilon: relative spacing of the numbers that snapshots were given in; 0: exact.
        window_epsilon: relative spacing of the numbers that velocities are stored in; 0: exact.
        elements: (B,) float64, weights in a block; None: very many.
    """

    velocity_gram: Tensor
    velocity_dot_last: Tensor | None
    last_squared: Tensor
    snapshot_epsilon: float = 0.0
    window_epsilon: float = 0.0
    elements: Tensor | None = None


def joined_products(products: Sequence[Products], elements: Tensor) -> Products:
    """The blocks of all as one batch; they are of one window, so that M and precision are the same.

    Args:
        products: one after the other, at least one.
        elements: (B,) weights in each block of all.
    """
    dots = [one.velocity_dot_last for one in products if one.velocity_dot_last is not None]
    return Products(
        torch.cat([one.velocity_gram for one in products]),
        torch.cat(dots) if dots else None,
        torch.cat([one.last_squared for one in products]),
        products[0].snapshot_epsilon,
        products[0].window_epsilon,
        elements,
    )


@dataclass(frozen=True, slots=True)
class Vectors:
    """A window's vectors themselves, float64 on the CPU; B blocks of s weights, M velocities, oldest first.

    Attributes:
        velocities: (B, M, s).
        last: (B, s), the last snapshot.
        snapshot_epsilon: as in `Products`.
        window_epsilon: as in `Products`.
    """

    velocities: Tensor
    last: Tensor
    snapshot_epsilon: float = 0.0
    window_epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """B blocks in coordinates, d axes; scaled per block so that nothing overflows.

    Attributes:
        observable: what `vectors` are.
        vectors: (B, d, m), x_1 … x_m of the observable; zeros for blocks that are not `usable`.
        steps: (B, d, M), the velocities in the same coordinates.
        scale: (B,), the length of a unit of coordinates.
        noise: (B,), squared length of what rounding adds to a vector, in coordinates.
        rounding: (B,), squared length of what the products' own rounding adds to a vector.
        usable: (B,) bool: everything is finite and something moved.
        elements: (B,) float64, weights in a block.
        velocity_lift: (B, M, d): a displacement c in coordinates is ``Σ_j (lift c)_j v_j``; None: primal, where it is
            ``scale c`` itself.
        last_lift: (B, d), likewise what it holds of the last snapshot; None: primal.
    """

    observable: Observable
    vectors: Tensor
    steps: Tensor
    scale: Tensor
    noise: Tensor
    rounding: Tensor
    usable: Tensor
    elements: Tensor
    velocity_lift: Tensor | None = None
    last_lift: Tensor | None = None

    @property
    def snapshots(self) -> int:
        """Weight snapshots in the window."""
        return self.steps.shape[-1] + 1


class _Span(NamedTuple):
    """What velocities span, and how the last snapshot lies to it: all scaled."""

    steps: Tensor
    lift: Tensor
    dots: Tensor
    last_squared: Tensor
    rounding: float


def from_products(
    products: Products, observable: Observable, resampling: Resampling | None = None
) -> Trajectory:
    """Coordinates from the Gram matrix.

    Args:
        products: of the window.
        observable: what the operator advances.
        resampling: to a uniform clock; None: the snapshots are on one.

    Raises:
        TooFewSnapshotsError: no velocity at all.
    """
    gram, dots = products.velocity_gram, products.velocity_dot_last
    if observable == "state" and dots is None:
        raise ValueError("the state observable needs the products of velocities and the last snapshot")
    if resampling is not None:
        gram = resample_gram(gram, resampling.velocities)
        dots = None if dots is None else resample_dots(dots, resampling.velocities)
    if gram.shape[-1] < 1:
        raise TooFewSnapshotsError(1, 2)
    sound = gram.isfinite().all(-1).all(-1) & products.last_squared.isfinite()
    if dots is not None:
        sound &= dots.isfinite().all(-1)
    gram = torch.where(sound[:, None, None], gram, 0.0)
    last_squared = torch.where(sound, products.last_squared, 0.0)
    largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    usable = sound & (largest > 0)
    squared_scale = torch.where(usable, largest, 1.0)
    gram = gram / squared_scale[:, None, None]
    rounding = 32.0 * gram.shape[-1] * _EPSILON
    singular, axes = _axes(gram, rounding)
    steps = singular[:, :, None] * axes.mT
    lift = axes * _inverse(singular)[:, None, :]
    noise = _noise(last_squared / squared_scale, steps, products.snapshot_epsilon, products.window_epsilon)
    scale = squared_scale.sqrt()
    vectors, last_lift = steps, torch.zeros_like(singular)
    if observable == "state" and dots is not None:
        dots = torch.where(sound[:, None], dots, 0.0) / squared_scale[:, None]
        span = _Span(steps, lift, dots, last_squared / squared_scale, rounding)
        vectors, steps, lift, last_lift = _with_own_axis(span)
        vectors = torch.where(usable[:, None, None], vectors, 0.0)
    if resampling is not None:
        lift = resampling.velocities @ lift
        noise = noise * resampling.amplification**2
    unsure = rounding * singular[:, 0].square()
    elements = torch.full_like(scale, _MANY) if products.elements is None else products.elements
    return Trajectory(observable, vectors, steps, scale, noise, unsure, usable, elements, lift, last_lift)


def from_vectors(
    vectors: Vectors, observable: Observable, resampling: Resampling | None = None
) -> Trajectory:
    """The weights as coordinates.

    Args:
        vectors: of the window.
        observable: what the operator advances.
        resampling: as in `from_products`.

    Raises:
        TooFewSnapshotsError: no velocity at all.
    """
    steps = vectors.velocities.mT
    if resampling is not None:
        steps = resample_vectors(vectors.velocities, resampling.velocities).mT
    if steps.shape[-1] < 1:
        raise TooFewSnapshotsError(1, 2)
    sound = steps.isfinite().all(-1).all(-1) & vectors.last.isfinite().all(-1)
    steps = torch.where(sound[:, None, None], steps, 0.0)
    last = torch.where(sound[:, None], vectors.last, 0.0)
    largest = steps.abs().amax(dim=(-2, -1))
    usable = sound & (largest > _TINY)
    scale = torch.where(usable, largest, 1.0)
    steps, last = steps / scale[:, None, None], last / scale[:, None]
    finite = last.isfinite().all(-1)  # else: weights so far beyond their changes that these are nothing
    usable, last = usable & finite, torch.where(finite[:, None], last, 0.0)
    noise = _noise(last.square().sum(-1), steps, vectors.snapshot_epsilon, vectors.window_epsilon)
    if resampling is not None:
        noise = noise * resampling.amplification**2
    path = steps if observable == "velocity" else _weights(steps, last)
    path = torch.where(usable[:, None, None], path, 0.0)
    return Trajectory(
        observable,
        path,
        steps,
        scale,
        noise,
        torch.zeros_like(noise),
        usable,
        torch.full_like(scale, steps.shape[1]),
    )


def _axes(gram: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Singular values (B, d) of V, falling, and right singular vectors (B, M, d); rounding is left out as zeros."""
    squared, axes = torch.linalg.eigh(gram)
    squared, axes = squared.flip(-1), axes.flip(-1)
    kept = squared > rounding * squared[:, :1].clamp(min=0.0)
    count = max(1, int(kept.sum(-1).max()))
    singular = torch.where(kept, squared, 0.0)[:, :count].clamp(min=0.0).sqrt()
    return singular, torch.where(kept[:, None, :count], axes[:, :, :count], 0.0)


def _with_own_axis(span: _Span) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights as vectors, steps and both lifts: one axis more, along what the last snapshot has outside the span."""
    within = torch.einsum("bmd,bm->bd", span.lift, span.dots)
    beyond = span.last_squared - within.square().sum(-1)
    beyond = torch.where(beyond > span.rounding * span.last_squared, beyond, 0.0).sqrt()
    steps = torch.cat([span.steps, torch.zeros_like(span.steps[:, :1])], dim=1)
    last = torch.cat([within, beyond[:, None]], dim=1)
    inverse = _inverse(beyond)
    own = -(span.lift @ within[:, :, None]) * inverse[:, None, None]
    last_lift = torch.cat([torch.zeros_like(within), inverse[:, None]], dim=1)
    return _weights(steps, last), steps, torch.cat([span.lift, own], dim=2), last_lift


def _weights(steps: Tensor, last: Tensor) -> Tensor:
    """w_1 … w_{M+1} from the velocities and w_{M+1}: ``w_j = w_last - Σ_{i >= j} v_i``."""
    behind = steps.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([last[:, :, None] - behind, last[:, :, None]], dim=-1)


def _noise(last_squared: Tensor, steps: Tensor, snapshot_epsilon: float, window_epsilon: float) -> Tensor:
    noise = window_epsilon**2 * steps.square().sum(1).mean(-1)
    # exact snapshots have none, be they so long that their square overflows
    return noise + snapshot_epsilon**2 * last_squared if snapshot_epsilon else noise


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1.0 / torch.where(values > 0, values, 1.0), 0.0)
