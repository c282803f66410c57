"""Recorded training runs of the oscillator's networks, kept in a cache directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from paper.oscillator import LAYOUT, Recipe, initial_parameters, train_steps

__all__ = ["Span", "default_cache", "recorded"]


@dataclass(frozen=True, slots=True)
class Span:
    """Which optimizer steps are looked at.

    Attributes:
        first: step of the window's first snapshot, t₁.
        last: step of its last snapshot, t₂.
        ahead: how far ahead of that is predicted, T. Unit: steps.
    """

    first: int
    last: int
    ahead: int

    @property
    def end(self) -> int:
        """The step that is predicted, t₂ + T."""
        return self.last + self.ahead


def default_cache() -> Path:
    """Where runs are kept: ``koopcast-bench`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "koopcast-bench"


def recorded(recipe: Recipe, seeds: int, span: Span, cache: Path) -> NDArray[np.float32]:
    """Weights of the networks of seeds 0, 1, …, after every step from ``span.first`` to ``span.end``.

    Trains them where the cache has no such run; a run that was broken off is not kept.

    Returns:
        (ahead + last - first + 1, seeds, 152), mapped into memory, read-only.
    """
    name = f"oscillator-{recipe.label}-{seeds}-{span.first}-{span.end}-torch{torch.__version__}.npy"
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            _record(recipe, seeds, span, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    run: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return run


def _record(recipe: Recipe, seeds: int, span: Span, path: Path) -> None:
    parameters = initial_parameters(range(seeds))
    optimizer = recipe.optimizer(parameters)
    shape = (span.end - span.first + 1, seeds, LAYOUT.size)
    snapshots = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    train_steps(parameters, optimizer, span.first)
    for index in range(len(snapshots)):
        if index:
            train_steps(parameters, optimizer, 1)
        with torch.no_grad():
            snapshots[index] = torch.cat([parameter.flatten(1) for parameter in parameters], dim=1).numpy()
    snapshots.flush()
