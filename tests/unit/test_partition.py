"""Which elements each partition puts together, what the blocks are called, and which specs are refused."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

import koopcast
from koopcast.partition import BlockPlan, IndexedView, StridedView, plan_blocks
from koopcast.wire import TensorSpec
from planned import block_values


def spec(*shape: int, node_of: str = "", node_axis: int | None = None) -> TensorSpec:
    return TensorSpec("float32", shape, node_of, node_axis)


SMALL = {"fc.weight": spec(2, 5), "scale": spec(), "fc.bias": spec(2)}
"""Elements 0 to 9, 10, and 11 to 12."""


def blocks(plan: BlockPlan) -> dict[str, list[int]]:
    return block_values(plan, np.arange(plan.elements))


def test_network_is_one_block() -> None:
    plan = plan_blocks(SMALL, "network")
    assert blocks(plan) == {"network": list(range(13))}
    assert (plan.block_count, plan.elements, plan.size(0)) == (1, 13, 13)


def test_tensor_is_one_block_a_tensor() -> None:
    assert blocks(plan_blocks(SMALL, "tensor")) == {
        "fc.weight": list(range(10)),
        "scale": [10],
        "fc.bias": [11, 12],
    }


def test_a_node_is_a_row_and_its_bias() -> None:
    assert blocks(plan_blocks(SMALL, "node")) == {
        "fc[0]": [0, 1, 2, 3, 4, 11],
        "fc[1]": [5, 6, 7, 8, 9, 12],
        "scale": [10],
    }


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            2,
            {
                "fc[0][0:2]": [0, 1],
                "fc[0][2:4]": [2, 3],
                "fc[1][0:2]": [5, 6],
                "fc[1][2:4]": [7, 8],
                "fc[0][4:5]": [4, 11],
                "fc[1][4:5]": [9, 12],
                "scale": [10],
            },
        ),
        (5, {"fc[0][0:5]": [0, 1, 2, 3, 4, 11], "fc[1][0:5]": [5, 6, 7, 8, 9, 12], "scale": [10]}),
        (99, {"fc[0][0:5]": [0, 1, 2, 3, 4, 11], "fc[1][0:5]": [5, 6, 7, 8, 9, 12], "scale": [10]}),
    ],
)
def test_the_last_chunk_of_a_quasi_node_has_the_remainder_and_the_bias(
    inputs: int, expected: dict[str, list[int]]
) -> None:
    assert blocks(plan_blocks(SMALL, "quasi_node", inputs)) == expected


def test_chunks_that_come_out_even_are_one_group_without_a_bias_and_two_with_one() -> None:
    lone = plan_blocks({"w": spec(3, 4)}, "quasi_node", 2)
    assert [(group.count, group.size) for group in lone.groups] == [(6, 2)]
    biased = plan_blocks({"weight": spec(3, 4), "bias": spec(3)}, "quasi_node", 2)
    assert [(group.count, group.size) for group in biased.groups] == [(3, 2), (3, 3)]


def test_a_weight_is_a_block() -> None:
    found = blocks(plan_blocks(SMALL, "weight"))
    assert list(found.values()) == [[element] for element in range(13)]
    assert list(found)[9:12] == ["fc.weight[9]", "scale[0]", "fc.bias[0]"]


def test_units_may_be_counted_on_any_axis() -> None:
    kernel = np.arange(24).reshape(3, 2, 4)
    for axis in range(3):
        tensors = {"weight": spec(3, 2, 4, node_axis=axis), "bias": spec(kernel.shape[axis])}
        found = blocks(plan_blocks(tensors, "node"))
        assert list(found.values()) == [
            [*kernel.take(unit, axis).flatten(), 24 + unit] for unit in range(kernel.shape[axis])
        ]


def test_what_lies_behind_the_units_axis_is_never_cut() -> None:
    kernel = np.arange(40).reshape(5, 2, 4)  # 5 inputs, 2 units, 4 taps
    tensors = {"weight": spec(5, 2, 4, node_axis=1)}
    for inputs, together in ((1, 1), (7, 1), (8, 2), (11, 2)):
        found = blocks(plan_blocks(tensors, "quasi_node", inputs))
        assert found[f"weight[1][0:{4 * together}]"] == kernel[:together, 1].flatten().tolist()
        assert {len(block) for block in found.values()} == {4, 4 * together}


# -------------------------------------------------------------------------------------------- whose vector it is


@pytest.mark.parametrize(
    ("matrix", "vector"),
    [
        ("weight", "bias"),
        ("a.weight", "a.bias"),
        ("rnn.weight_ih_l0", "rnn.bias_ih_l0"),
        ("attention.in_proj_weight", "attention.in_proj_bias"),
        ("weights.weight", "weights.bias"),
    ],
)
def test_a_bias_is_found_by_its_name(matrix: str, vector: str) -> None:
    found = blocks(plan_blocks({vector: spec(3), matrix: spec(3, 1)}, "node"))
    assert list(found.values()) == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight": spec(3, 2), "b.bias": spec(3)},
        {"a.weight": spec(3, 2), "a.bias": spec(2)},
        {"a.weight": spec(3, 2), "a.bias": spec(3, 1)},
        {"a.weight": spec(3), "a.bias": spec(3)},
        {"a.kernel": spec(3, 2), "a.bias": spec(3)},
    ],
)
def test_a_name_or_a_size_that_does_not_fit_leaves_a_vector_alone(tensors: dict[str, TensorSpec]) -> None:
    found = blocks(plan_blocks(tensors, "node"))
    first = tensors[next(iter(tensors))].elements
    assert not any(min(block) < first <= max(block) for block in found.values())


def test_the_spec_overrules_the_name_and_several_vectors_may_belong_to_one_matrix() -> None:
    tensors = {
        "shift": spec(2, node_of="b.weight"),
        "a.weight": spec(2, 1),
        "a.bias": spec(2, node_of="b.weight"),
        "b.weight": spec(2, 1),
        "b.bias": spec(2),
        "gain": spec(2, 1, node_of="b.weight"),
    }
    assert blocks(plan_blocks(tensors, "node")) == {
        "a[0]": [2],
        "a[1]": [3],
        "b[0]": [6, 0, 4, 8, 10],
        "b[1]": [7, 1, 5, 9, 11],
    }


def test_a_label_is_shortened_only_where_that_is_unique() -> None:
    tensors = {"a": spec(2, 1), "a.weight": spec(1, 2), "weight": spec(1, 2), "b.weight": spec(1, 2)}
    names = list(blocks(plan_blocks(tensors, "node")))
    assert names == ["a[0]", "a[1]", "a.weight[0]", "weight[0]", "b[0]"]


# ------------------------------------------------------------------------------------------------------- groups


def test_short_tensors_of_one_size_share_a_group_and_long_ones_do_not() -> None:
    tensors = {"a": spec(512), "b": spec(513), "c": spec(512), "d": spec(1), "e": spec(513), "f": spec(512)}
    groups = plan_blocks(tensors, "tensor").groups
    assert sorted((group.size, list(group.numbers)) for group in groups) == [
        (1, [3]),
        (512, [0, 2, 5]),
        (513, [1]),
        (513, [4]),
    ]
    shared = next(group for group in groups if group.size == 512)
    assert shared.parts == (IndexedView((0, 1025, 2051), 512),)


def test_what_is_evenly_spaced_is_a_strided_view_and_a_range() -> None:
    tensors = {name + kind: spec(*shape) for name in "abc" for kind, shape in (("m", (9, 9)), ("v", (3,)))}
    (vectors,) = (group for group in plan_blocks(tensors, "tensor").groups if group.size == 3)
    assert vectors.parts == (StridedView(81, (3,), (84,), (3,), (1,)),)
    assert vectors.numbers == range(1, 7, 2)


@pytest.mark.parametrize(
    ("partition", "count"), [("node", 100_000), ("quasi_node", 400_000), ("weight", 1_100_000)]
)
def test_a_hundred_thousand_nodes_cost_nothing_to_plan(partition: str, count: int) -> None:
    tensors = {"fc.weight": spec(100_000, 10), "fc.bias": spec(100_000)}
    tracemalloc.start()
    plan = plan_blocks(tensors, partition, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.block_count == count
    assert len(plan.groups) <= 2
    assert all(isinstance(group.numbers, range) for group in plan.groups)
    assert peak < 50_000  # bytes; an object a node would be megabytes


@pytest.mark.parametrize("partition", ["tensor", "node", "weight"])
def test_the_most_tensors_a_job_may_have_are_planned_at_once(partition: str) -> None:
    tensors = {f"{index}": spec() for index in range(65_536)}
    started = time.process_time()
    plan = plan_blocks(tensors, partition)
    assert time.process_time() - started < 1.0
    assert (plan.block_count, len(plan.groups)) == (65_536, 1)
    assert plan.name(65_535).startswith("65535")


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("tensors", "field", "message"),
    [
        ({"w": spec(2, 3, node_axis=2)}, "w", "axis 2"),
        ({"w": spec(2, 3, node_axis=-1)}, "w", "axis -1"),
        ({"s": spec(node_axis=0)}, "s", "axis 0"),
        ({"w": spec(2, 3), "b": spec(2, node_of="v")}, "b", "no matrix"),
        ({"w": spec(2), "b": spec(2, node_of="w")}, "b", "no matrix"),
        ({"w": spec(2, 1), "x": spec(2, 1, node_of="w"), "b": spec(2, node_of="x")}, "b", "no matrix"),
        ({"w": spec(2, 3), "b": spec(3, node_of="w")}, "b", "has 2 units"),
        ({"w": spec(2, 3, node_axis=1), "b": spec(2, node_of="w")}, "b", "has 3 units"),
    ],
)
@pytest.mark.parametrize("partition", ["network", "node"])
def test_units_that_do_not_fit_are_refused_whatever_the_partition(
    partition: str, tensors: dict[str, TensorSpec], field: str, message: str
) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match=message) as raised:
        plan_blocks(tensors, partition)
    assert raised.value.details["field"] == field


@pytest.mark.parametrize("inputs", [None, 0, -1])
def test_quasi_nodes_need_their_size(inputs: int | None) -> None:
    with pytest.raises(koopcast.InvalidArgument, match="quasi_node_inputs"):
        plan_blocks(SMALL, "quasi_node", inputs)


def test_an_unknown_partition_is_refused() -> None:
    with pytest.raises(koopcast.InvalidArgument, match="layer"):
        plan_blocks(SMALL, "layer")


@pytest.mark.parametrize("number", [-1, 3])
def test_a_block_that_is_not_there_has_no_name_and_no_size(number: int) -> None:
    plan = plan_blocks(SMALL, "tensor")
    with pytest.raises(IndexError):
        plan.name(number)
    with pytest.raises(IndexError):
        plan.size(number)
