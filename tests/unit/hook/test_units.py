"""The nodes that attach plans are the units of torch's own modules."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from koopcast.hook.selection import Selection
from koopcast.hook.units import Units, unit_specs
from koopcast.partition import plan_blocks
from planned import block_values


def node_blocks(model: nn.Module) -> Mapping[str, list[float]]:
    """Block name to its weights."""
    specs = Selection(model, None, averaged=False).specs
    parameters = dict(model.named_parameters())
    flat = torch.cat([parameters[name].detach().flatten() for name in specs]).numpy()
    return block_values(plan_blocks(specs, "node"), flat)


def nodes(matrix: Tensor, *vectors: Tensor, axis: int = 0) -> list[list[float]]:
    """Unit i: its weights, then its entry of each vector."""
    return [
        torch.cat([matrix.select(axis, i).flatten(), *(vector[i : i + 1] for vector in vectors)]).tolist()
        for i in range(matrix.shape[axis])
    ]


class Named(nn.Module):
    """A bias that no name rule would find."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2))
        self.offset = nn.Parameter(torch.randn(3))


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 3),
        nn.Linear(3, 3, bias=False),
        nn.Bilinear(2, 3, 4),
        nn.Conv1d(2, 3, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv3d(2, 2, 2),
        nn.Embedding(5, 3),
        nn.EmbeddingBag(5, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_units_are_rows(module: nn.Module) -> None:
    vectors = [module.get_parameter("bias")] if getattr(module, "bias", None) is not None else []
    model = nn.Sequential(module)
    expected = {"0.weight": Units(node_axis=0), "0.bias": Units(node_of="0.weight")}
    assert unit_specs(model) == (expected if vectors else {"0.weight": Units(node_axis=0)})
    found = node_blocks(model)
    assert list(found.values()) == nodes(module.get_parameter("weight"), *vectors)
    assert next(iter(found)) == "0[0]"


@pytest.mark.parametrize(
    "module",
    [nn.ConvTranspose1d(3, 2, 2), nn.ConvTranspose2d(3, 3, 2), nn.ConvTranspose3d(2, 3, 2, bias=False)],
    ids=lambda module: type(module).__name__,
)
def test_units_of_transposed_convolutions_are_on_axis_1(module: nn.Module) -> None:
    vectors = [module.get_parameter("bias")] if module.bias is not None else []
    assert list(node_blocks(module).values()) == nodes(module.get_parameter("weight"), *vectors, axis=1)


def test_units_of_a_depthwise_transposed_convolution_are_rows() -> None:
    module = nn.ConvTranspose2d(3, 3, 2, groups=3)  # a unit has one input, of its own number
    assert list(node_blocks(module).values()) == nodes(module.weight, module.get_parameter("bias"))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_units_of_recurrent_layers_are_the_rows_of_their_gates(kind: str) -> None:
    module = getattr(nn, kind)(3, 2, num_layers=2, bidirectional=True)
    found = node_blocks(module)
    assert len(found) == sum(p.shape[0] for name, p in module.named_parameters() if name.startswith("weight"))
    for name in ("ih_l0", "hh_l0", "ih_l1", "hh_l1_reverse"):
        expected = nodes(module.get_parameter(f"weight_{name}"), module.get_parameter(f"bias_{name}"))
        assert [found[f"weight_{name}[{unit}]"] for unit in range(len(expected))] == expected


def test_units_of_a_recurrent_cell() -> None:
    module = nn.GRUCell(2, 2)
    expected = [
        *nodes(module.weight_ih, module.bias_ih),
        *nodes(module.weight_hh, module.bias_hh),
    ]
    assert list(node_blocks(module).values()) == expected


def test_units_of_attention_are_the_rows_of_its_projections() -> None:
    module = nn.MultiheadAttention(4, 2)
    assert unit_specs(module)["in_proj_bias"] == Units(node_of="in_proj_weight")
    found = list(node_blocks(module).values())
    assert found[:12] == nodes(module.in_proj_weight, module.in_proj_bias)
    assert found[12:] == nodes(module.out_proj.weight, module.out_proj.bias)


def test_attention_with_projections_apart_keeps_their_common_bias_whole() -> None:
    module = nn.MultiheadAttention(4, 2, kdim=3)
    found = node_blocks(module)
    assert found["in_proj_bias"] == module.in_proj_bias.tolist()
    assert found["q_proj_weight[0]"] == module.get_parameter("q_proj_weight")[0].tolist()


def test_tied_weights_count_once_under_their_first_name() -> None:
    embedding, linear = nn.Embedding(5, 3), nn.Linear(3, 5)
    linear.weight = embedding.weight
    model = nn.Sequential(embedding, linear)
    assert unit_specs(model) == {"0.weight": Units(node_axis=0), "1.bias": Units(node_of="0.weight")}
    assert list(node_blocks(model).values()) == nodes(embedding.weight, linear.bias)


def test_two_layers_of_one_matrix_put_both_biases_into_its_units() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    found = node_blocks(nn.Sequential(first, second))
    assert list(found.values()) == nodes(first.weight, first.bias, second.bias)


@pytest.mark.parametrize(
    ("model", "whole"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), ["bias"]),
        (nn.LayerNorm(4), ["weight", "bias"]),
        (nn.BatchNorm2d(4), ["weight", "bias"]),
        (nn.PReLU(3), ["weight"]),
        (Named(), ["offset"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_left_to_the_names(model: nn.Module, whole: list[str]) -> None:
    assert unit_specs(model) == {}
    found = node_blocks(model)
    for name in whole:
        assert found[name] == model.get_parameter(name).tolist()


def test_a_subclass_with_other_shapes_keeps_its_vector_whole() -> None:
    class Wide(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.bias = nn.Parameter(torch.randn(6))

    model = Wide()
    assert node_blocks(model)["bias"] == model.bias.tolist()


def test_a_vector_whose_matrix_takes_no_part_is_a_block() -> None:
    frozen = nn.Linear(2, 3)
    frozen.weight.requires_grad = False
    model = nn.Sequential(frozen, nn.Linear(3, 2))
    specs = Selection(model, None, averaged=False).specs
    assert {name: spec.node_of for name, spec in specs.items()} == {
        "0.bias": "",
        "1.weight": "",
        "1.bias": "1.weight",
    }
    assert node_blocks(model)["0.bias"] == frozen.bias.tolist()
