"""Recorded runs: inner products of all that the weights moved, kept in a cache directory.

A prediction is a combination of the window's velocities, the truth is the sum of the velocities that followed: their
inner products are all that windows, predictions and errors need, and a run of 20,000 weights takes a few megabytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibration.tasks import RUN_STEPS, TASKS

__all__ = ["RECORD_STEPS", "Record", "default_cache", "recorded"]

RECORD_STEPS = 5
"""Steps between snapshots."""


@dataclass(frozen=True, slots=True)
class Record:
    """One run's snapshots after every fifth step, of T tensors; K velocities between K + 1 snapshots.

    Attributes:
        grams: (T, K, K) float64, inner products of the velocities.
        squared: (T, K + 1) float64, squared lengths of the snapshots.
        sizes: (T,) int64, elements.
    """

    grams: Tensor
    squared: Tensor
    sizes: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """What it is made of, a row a tensor each."""
        return self.grams, self.squared, self.sizes


def default_cache() -> Path:
    """Where runs are kept: ``koopcast-bench`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "koopcast-bench"


def recorded(name: str, seed: int, cache: Path) -> dict[str, Record]:
    """The run's weights (``"plain"``), and the means of each five steps' weights (``"averaged"``).

    Trains where the cache has no such run; one that was broken off is not kept.
    """
    label = "".join(character if character.isalnum() else "-" for character in name)
    path = cache / f"calibration-{label}-{seed}-{RUN_STEPS}-torch{torch.__version__}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            plain, averaged = _trained(name, seed)
            torch.save([_record(plain).parts, _record(averaged).parts], partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    plain_tensors, averaged_tensors = torch.load(path, weights_only=True)
    return {"plain": Record(*plain_tensors), "averaged": Record(*averaged_tensors)}


def _trained(name: str, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Two paths, each a tensor (K + 1, n) float32 a parameter."""
    training = TASKS[name].start(seed)
    parameters = [parameter.detach() for parameter in training.parameters.values()]
    plain: list[list[Tensor]] = [[] for _ in parameters]
    averaged: list[list[Tensor]] = [[] for _ in parameters]
    for _ in range(RUN_STEPS // RECORD_STEPS):
        sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        for _ in range(RECORD_STEPS):
            training.step()
            sums = [total + parameter for total, parameter in zip(sums, parameters, strict=True)]
        for path, means, parameter, total in zip(plain, averaged, parameters, sums, strict=True):
            path.append(parameter.flatten().clone())
            means.append((total.flatten() / RECORD_STEPS).float())
    return [torch.stack(path) for path in plain], [torch.stack(path) for path in averaged]


def _record(paths: list[Tensor]) -> Record:
    grams, squared = [], []
    for path in paths:
        exact = path.double()
        velocities = exact.diff(dim=0)
        grams.append(velocities @ velocities.T)
        squared.append(exact.square().sum(-1))
    sizes = torch.tensor([path.shape[1] for path in paths])
    return Record(torch.stack(grams), torch.stack(squared), sizes)
