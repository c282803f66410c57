"""What a window tells of the same snapshots, in each of its three forms."""

from __future__ import annotations

import numpy as np
import torch

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import PredictionBatch, Products, Streamed, Vectors


def products(*blocks: Array, snapshot_epsilon: float = 0.0) -> Products:
    """Of blocks of snapshots (T, n), one n for all."""
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*blocks))
    elements = torch.tensor([float(block.shape[1]) for block in blocks], dtype=torch.float64)
    return Products(gram, dots, squared, snapshot_epsilon, snapshot_epsilon, elements)


def vectors(*blocks: Array, snapshot_epsilon: float = 0.0) -> Vectors:
    """Likewise, the vectors themselves."""
    together = np.stack(blocks)
    return Vectors(
        torch.from_numpy(np.diff(together, axis=1)),
        torch.from_numpy(together[:, -1].copy()),
        snapshot_epsilon,
        snapshot_epsilon,
    )


def streamed(
    *blocks: Array,
    observable: str,
    held_out: int | None = None,
    forgetting: float = 1.0,
    snapshot_epsilon: float = 0.0,
) -> Streamed:
    """Likewise, the R factors of a whole segment; as many strides held out as a sliding window would."""
    together = np.stack(blocks)
    paths = np.diff(together, axis=1) if observable == "velocity" else together
    held = max(1, (together.shape[1] - 1) // 3) if held_out is None else held_out
    later = max(0, paths.shape[1] - held - 2)  # the first vector of what is not in the factor
    return Streamed(
        torch.from_numpy(
            np.stack([dmd_reference.pair_factor(path[: later + 1], forgetting) for path in paths])
        ),
        torch.from_numpy(paths[:, later:].copy()),
        torch.from_numpy(together[:, -1].copy()),
        together.shape[1],
        held,
        snapshot_epsilon,
    )


def displacement(batch: PredictionBatch, snapshots: Array, horizon: int = 0, block: int = 0) -> Array:
    """(n,) the answer of any of them, for one block."""
    if batch.displacement is not None:
        return batch.displacement[horizon, block].numpy()
    found = batch.velocity_coefficients[horizon, block].numpy() @ np.diff(snapshots, axis=0)
    return np.asarray(found + float(batch.last_coefficients[horizon, block]) * snapshots[-1])
