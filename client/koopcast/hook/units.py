"""The units of a model: which axis of a parameter counts them, and which vectors belong to them.

Read off torch's own modules. Of others, names and shapes must do: see `koopcast.partition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from torch import nn

__all__ = ["Units", "unit_specs"]

_ROWS: Final = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)
"""Modules whose ``weight`` counts units (an embedding: entries) along axis 0."""
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose ``weight`` is (inputs, units / groups, ...)."""


class Units(NamedTuple):
    """What a parameter's `koopcast.TensorSpec` says of units.

    Attributes:
        node_of: of a vector, the matrix whose units its entries belong to; empty if not known.
        node_axis: of a matrix, the axis that counts units; None if not known.
    """

    node_of: str = ""
    node_axis: int | None = None


class _Layer(NamedTuple):
    """A matrix and the vector of its biases, by their names in the module."""

    matrix: str
    axis: int
    vector: str


def unit_specs(model: nn.Module) -> Mapping[str, Units]:
    """The units of a model's parameters, by the names of `torch.nn.Module.named_parameters`.

    Known are linear and bilinear layers, convolutions, transposed convolutions without groups, embeddings, recurrent
    layers and cells (a unit is a gate's row), and the projections of attention. Parameters of other modules, and
    those that a parametrisation (weight or spectral norm) made of a weight, are left out: their names decide.
    A parameter with several names counts under the first; where several modules use it, the first of them decides.
    """
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Units] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for layer in _layers(module, own):
            matrix, vector = own.get(layer.matrix), own.get(layer.vector)
            if matrix is None or matrix.dim() < 2:
                continue
            matrix_name = first_names[id(matrix)]
            axis = found.setdefault(matrix_name, Units(node_axis=layer.axis)).node_axis
            # A subclass may have changed the shapes; then the vector's entries are no units.
            if vector is not None and axis is not None and vector.shape == (matrix.shape[axis],):
                found.setdefault(first_names[id(vector)], Units(node_of=matrix_name))
    return found


def _layers(module: nn.Module, own: Mapping[str, nn.Parameter]) -> Iterator[_Layer]:
    if isinstance(module, _ROWS):
        yield _Layer("weight", 0, "bias")
    elif isinstance(module, _TRANSPOSED) and module.groups == 1:
        yield _Layer("weight", 1, "bias")
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        for name in own:
            if name.startswith("weight_"):
                yield _Layer(name, 0, name.replace("weight_", "bias_", 1))
    elif isinstance(module, nn.MultiheadAttention):
        yield _Layer("in_proj_weight", 0, "in_proj_bias")
