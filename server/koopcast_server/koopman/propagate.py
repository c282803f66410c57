"""How far the amplitudes get in any number of strides, whole or not.

Both observables obey ``s(τ + 1) = Ã s(τ) + b`` with ``s(0) = 0``: for velocities
``s(τ) = Σ_{i=1..τ} Ã^i z₀`` and ``b = Ã z₀``; for weights ``s(τ) = (Ã^τ - I) z₀`` and ``b = (Ã - I) z₀``. One
augmented matrix carries the sum, and its repeated squares serve all horizons at once. What is left of a stride
comes first, as ``s(f)`` for a fraction f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from koopcast_server.koopman.settings import Observable
from koopcast_server.koopman.spectrum import Functions, Spectrum

__all__ = ["advance", "each_stride"]

_SERIES = 1e-3
"""Within this distance of the eigenvalue 1 a series replaces the quotient."""


def advance(
    operator: Tensor,
    spectrum: Spectrum | None,
    start: Tensor,
    strides: Sequence[float],
    observable: Observable,
) -> Tensor:
    """Change of the mode amplitudes after each of `strides`.

    Args:
        operator: (B, r, r).
        spectrum: of that operator, with eigenvectors; None or without them will do for whole strides.
        start: (B, r), amplitudes z₀ of the last vector.
        strides: T numbers >= 0, finite. Unit: strides.
        observable: which sum.

    Returns:
        (B, r, T) float64: displacement (velocity), or difference of states. Not finite where it overflows.
    """
    force = _force(operator, start, observable)
    whole = [math.floor(tau) for tau in strides]
    fraction = torch.tensor([tau - n for tau, n in zip(strides, whole, strict=True)], dtype=operator.dtype)
    first = force[:, :, None] * fraction
    if any(tau != n for tau, n in zip(strides, whole, strict=True)):
        if spectrum is None or spectrum.functions is None:
            raise ValueError("broken strides need eigenvectors")
        by_eigenvalues = _fraction(spectrum.values, spectrum.functions, start, fraction, observable)
        first = torch.where(spectrum.functions.trusted[:, None, None], by_eigenvalues, first)
    return _repeat(operator, force, first, whole)


def each_stride(operator: Tensor, start: Tensor, count: int, observable: Observable) -> Tensor:
    """(B, r, count): the same after 1, 2, … `count` strides, one by one."""
    force = _force(operator, start, observable)[:, :, None]
    reached = [force]
    for _ in range(count - 1):
        reached.append(operator @ reached[-1] + force)
    return torch.cat(reached, dim=-1)


def _force(operator: Tensor, start: Tensor, observable: Observable) -> Tensor:
    """Force ``b`` of the recursion, (B, r)."""
    next_one = (operator @ start[:, :, None]).squeeze(-1)
    return next_one if observable == "velocity" else next_one - start


def _fraction(
    eigenvalues: Tensor, functions: Functions, start: Tensor, fraction: Tensor, observable: Observable
) -> Tensor:
    """(B, r, T) s(f) for 0 <= f < 1: λ (λ^f - 1) / (λ - 1) of velocities, λ^f - 1 of weights.

    λ^f of a negative real λ is complex: the real part is taken.
    """
    values = eigenvalues[:, :, None]
    beyond = values - 1.0
    near = beyond.abs() < _SERIES
    one = torch.ones_like(values)
    power = torch.exp(fraction * torch.where(values == 0, one, values).log())
    power = torch.where((values == 0) & (fraction > 0), 0.0, power)
    quotient = (power - 1.0) / torch.where(near, one, beyond)
    f = fraction
    series = f * (1 + (f - 1) / 2 * beyond * (1 + (f - 2) / 3 * beyond * (1 + (f - 3) / 4 * beyond)))
    factor = torch.where(near, series, quotient) * (values if observable == "velocity" else beyond)
    amplitudes = functions.inverse @ start.to(functions.inverse.dtype)[:, :, None]
    return (functions.vectors @ (factor * amplitudes)).real


def _repeat(operator: Tensor, force: Tensor, first: Tensor, counts: Sequence[int]) -> Tensor:
    """Apply ``s ← Ã s + b`` counts[t] times to first[:, :, t], by squaring ``[[Ã, b], [0, 1]]``."""
    blocks, size, columns = first.shape
    step = operator.new_zeros((blocks, size + 1, size + 1))
    step[:, :size, :size] = operator
    step[:, :size, size] = force
    step[:, size, size] = 1.0
    state = torch.cat([first, first.new_ones((blocks, 1, columns))], dim=1)
    for bit in range(max(counts).bit_length()):
        wanted = torch.tensor([bool(count >> bit & 1) for count in counts])
        state = torch.where(wanted, step @ state, state)
        step = step @ step
    return state[:, :size]
