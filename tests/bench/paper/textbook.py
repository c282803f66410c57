"""The operators of Dogra & Redman, written as the paper writes them: ``U = F′ pinv(F)``, prediction ``U^T w(t₂)``.

A. S. Dogra and W. T. Redman, "Optimizing Neural Networks via Koopman Operator Theory", NeurIPS 2020 (arXiv
2006.02361), section 3. F and F′ hold a block's snapshots t₁ … t₂ - 1 and t₁ + 1 … t₂ as columns: the weights themselves,
every step, nothing truncated, no ridge, eigenvalues as they come. The pseudo-inverse cuts singular values at
max(shape) · eps of the largest one, as MATLAB's ``pinv`` does, with which the authors published their code. Float64
NumPy, one block after another; written apart from koopcast, to compare it with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from paper.networks import Layout

__all__ = ["PARTITIONS", "BlockOperator", "partition_blocks", "predict"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PARTITIONS: Final = ("node", "quasi-node", "layer", "tensor", "weight")


@dataclass(frozen=True, slots=True)
class BlockOperator:
    """``U = outputs @ pseudoinverse``, kept as its two factors.

    Attributes:
        outputs: F′, (size, snapshots - 1).
        pseudoinverse: of F, (snapshots - 1, size).
        modes: orthonormal rows that span F's columns, (rank, size).
        rank: singular values of F that are kept.
        condition: largest over smallest kept singular value.
    """

    outputs: Array
    pseudoinverse: Array
    modes: Array
    rank: int
    condition: float

    @classmethod
    def fit(cls, snapshots: Array) -> Self:
        """Fit on the rows of (snapshots, size).

        Raises:
            ValueError: fewer than two snapshots.
        """
        if len(snapshots) < 2:
            raise ValueError(f"an operator needs two snapshots, not {len(snapshots)}")
        inputs = snapshots[:-1]
        left, singular, right = np.linalg.svd(inputs, full_matrices=False)
        kept = singular > max(inputs.shape) * np.finfo(np.float64).eps * singular[0]
        rank = int(kept.sum())
        inverse = np.divide(1.0, singular, out=np.zeros_like(singular), where=kept)
        condition = float(singular[0] / singular[rank - 1]) if rank else np.nan
        # The snapshots are F's columns: F = rightᵀ S leftᵀ.
        return cls(snapshots[1:].T, (left * inverse) @ right, right[:rank], rank, condition)

    def predict(self, start: Array, steps: int) -> Array:
        """``U`` to the power `steps`, applied to `start` (size). Not finite where the power overflows.

        A block longer than the window has as its power ``F′ (F⁺ F′)^(steps - 1) F⁺``: the same numbers without
        the (size, size) matrix.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if len(self.outputs) <= len(self.pseudoinverse):
                return np.asarray(np.linalg.matrix_power(self._small(), steps) @ start)
            inner = np.linalg.matrix_power(self._small(), steps - 1)
            return np.asarray(self.outputs @ (inner @ (self.pseudoinverse @ start)))

    def predict_within(self, start: Array, steps: int) -> Array:
        """``U^steps`` between projections on F's columns; the part of `start` (size) outside them stays.

        The same as `predict` where F has full row rank. Elsewhere ``U^T`` moves that part to zero: F⁺ is blind to it.
        """
        coordinates = self.modes @ start
        reduced = (self.modes @ self.outputs) @ (self.pseudoinverse @ self.modes.T)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = np.linalg.matrix_power(reduced, steps) @ coordinates
            return np.asarray(start + (moved - coordinates) @ self.modes)

    def spectral_radius(self) -> float:
        """Largest modulus of U's eigenvalues."""
        return float(np.abs(np.linalg.eigvals(self._small())).max())

    def _small(self) -> Array:
        """U, or F⁺ F′, which has the same eigenvalues but for zeros; whichever is smaller."""
        if len(self.outputs) <= len(self.pseudoinverse):
            return self.outputs @ self.pseudoinverse
        return self.pseudoinverse @ self.outputs


def partition_blocks(layout: Layout, partition: str, quasi_inputs: int = 5) -> list[Indices]:
    """Flat indices of every block's elements; each element belongs to exactly one block.

    Args:
        layout: of the flat vector.
        partition: ``"node"`` (a unit's row of weights and its bias), ``"quasi-node"`` (that row in chunks, the bias in
            the last one), ``"layer"`` (weights and biases of a layer), ``"tensor"`` or ``"weight"`` (one block each).
        quasi_inputs: inputs in a quasi-node.

    Raises:
        ValueError: for another partition.
    """
    numbers = np.arange(layout.size)
    if partition == "weight":
        return list(numbers[:, None])
    ends = np.cumsum([int(np.prod(shape)) for shape in layout.shapes.values()])
    tensors = np.split(numbers, ends[:-1])
    if partition == "tensor":
        return tensors
    layers = list(zip(tensors[::2], tensors[1::2], strict=True))
    if partition == "layer":
        return [np.concatenate(layer) for layer in layers]
    if partition not in ("node", "quasi-node"):
        raise ValueError(f"partition must be one of {', '.join(PARTITIONS)}, not {partition!r}")
    blocks = []
    for weights, biases in layers:
        for row, bias in zip(weights.reshape(len(biases), -1), biases, strict=True):
            width = quasi_inputs if partition == "quasi-node" else len(row)
            chunks = [row[start : start + width] for start in range(0, len(row), width)]
            blocks += [*chunks[:-1], np.append(chunks[-1], bias)]
    return blocks


def predict(window: Array, blocks: list[Indices], steps: int, *, within: bool = False) -> Array:
    """Weights `steps` steps after the last row of (snapshots, size), each block by an operator of its own.

    Args:
        window: (snapshots, size).
        blocks: as `partition_blocks` gives them.
        steps: how far ahead.
        within: by `BlockOperator.predict_within`, for blocks of more than one element.
    """
    predicted = np.empty(window.shape[1])
    if all(len(block) == 1 for block in blocks):
        return _predict_scalars(window, steps)
    for block in blocks:
        snapshots = np.ascontiguousarray(window[:, block])
        operator = BlockOperator.fit(snapshots)
        predict_block = operator.predict_within if within else operator.predict
        predicted[block] = predict_block(snapshots[-1], steps)
    return predicted


def _predict_scalars(window: Array, steps: int) -> Array:
    """All operators of one weight each at once: U = Σ w′ w / Σ w², and 0 for a weight that is 0 throughout."""
    squares = np.einsum("tn,tn->n", window[:-1], window[:-1])
    products = np.einsum("tn,tn->n", window[1:], window[:-1])
    ratio = np.divide(products, squares, out=np.zeros_like(squares), where=squares > 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(ratio**steps * window[-1])
