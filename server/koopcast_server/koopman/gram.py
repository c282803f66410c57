"""From a window's products to the Gram matrix of what the operator advances.

Everything is a combination of the *frame* of M + 1 vectors ``(v_1 … v_M, w_last)``: velocities as they are,
and weights as ``w_j = w_last - sum_{i >= j} v_i``. So an observable is a matrix `lift`, and errors, answers
and Grams are written in frame coordinates, whatever the observable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopcast_server.koopman.settings import Observable, TooFewSnapshotsError

__all__ = ["Observed", "Products", "observe"]


@dataclass(frozen=True, slots=True)
class Products:
    """Inner products of a window, all float64 on the CPU; B blocks, M velocities, oldest first.

    Attributes:
        velocity_gram: (B, M, M), <v_i, v_j>.
        velocity_dot_last: (B, M), <v_j, w_last>.
        last_squared: (B,), <w_last, w_last>.
        snapshot_epsilon: relative spacing of the numbers that snapshots were given in; 0: exact.
        window_epsilon: relative spacing of the numbers that velocities are stored in; 0: exact.
    """

    velocity_gram: Tensor
    velocity_dot_last: Tensor
    last_squared: Tensor
    snapshot_epsilon: float = 0.0
    window_epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """m vectors of an observable, x_1 … x_m, as the operator sees them. Scaled per block: nothing overflows.

    Attributes:
        observable: which one.
        lift: (m, M + 1), frame coordinates of x_i.
        gram: (B, m, m), <x_i, x_j> / scale; zeros for blocks that are not `usable`.
        frame: (B, M + 1, M + 1), the frame's Gram / scale.
        noise: (B,), squared length of what rounding adds to a vector / scale: singular values below its root
            are not to be told from noise.
        usable: (B,) bool: all products are finite and something moved.
    """

    observable: Observable
    lift: Tensor
    gram: Tensor
    frame: Tensor
    noise: Tensor
    usable: Tensor

    @property
    def count(self) -> int:
        """m, the number of vectors."""
        return self.lift.shape[0]

    def snapshots(self, vectors: int) -> int:
        """Weight snapshots that the first `vectors` vectors are made of."""
        return vectors + 1 if self.observable == "velocity" else vectors


def observe(products: Products, observable: Observable) -> Observed:
    """Gram matrix of an observable.

    For ``"state"`` the common part ``w_last`` keeps its own products and is added back last (design §2,
    Numerics).

    Raises:
        TooFewSnapshotsError: fewer than 3 snapshots for velocity, 2 for state.
    """
    velocities = products.velocity_gram.shape[-1]
    needed = 3 if observable == "velocity" else 2
    if velocities + 1 < needed:
        raise TooFewSnapshotsError(velocities + 1, needed)
    frame = _frame(products, observable)
    finite = frame.isfinite().all(dim=-1).all(dim=-1)
    frame = torch.where(finite[:, None, None], frame, 0.0)
    lift = _lift(velocities, observable, frame)
    moves = frame.diagonal(dim1=-2, dim2=-1)[:, :velocities].amax(dim=-1) > 0
    scale = frame.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
    scale = torch.where(scale > 0, scale, 1.0)
    frame = frame / scale[:, None, None]
    usable = finite & moves
    gram = torch.where(usable[:, None, None], lift @ frame @ lift.T, 0.0)
    speed = frame.diagonal(dim1=-2, dim2=-1)[:, :velocities].mean(dim=-1)
    last = torch.where(finite, products.last_squared, 0.0) / scale
    noise = products.snapshot_epsilon**2 * last + products.window_epsilon**2 * speed
    return Observed(observable, lift, gram, frame, noise, usable)


def _frame(products: Products, observable: Observable) -> Tensor:
    """(B, M + 1, M + 1) Gram of (v_1 … v_M, w_last); for velocities the weights' part is 0."""
    gram = products.velocity_gram
    blocks, velocities = gram.shape[:2]
    frame = gram.new_zeros((blocks, velocities + 1, velocities + 1))
    frame[:, :velocities, :velocities] = gram
    if observable == "state":
        frame[:, :velocities, velocities] = products.velocity_dot_last
        frame[:, velocities, :velocities] = products.velocity_dot_last
        frame[:, velocities, velocities] = products.last_squared
    return frame


def _lift(velocities: int, observable: Observable, like: Tensor) -> Tensor:
    """Frame coordinates of v_1 … v_M, or of w_1 … w_{M+1}."""
    if observable == "velocity":
        return torch.eye(velocities, velocities + 1, dtype=like.dtype)
    lift = like.new_zeros((velocities + 1, velocities + 1))
    lift[:, :velocities] = -torch.ones_like(lift[:, :velocities]).triu()
    lift[:, velocities] = 1.0
    return lift
