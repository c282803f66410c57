"""Whatever tensors a job has, its blocks hold every element once."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from koopcast.partition import plan_blocks
from koopcast.wire import TensorSpec
from planned import block_values, group_values

PARTITIONS = st.sampled_from(["network", "tensor", "node", "quasi_node", "weight"])


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, TensorSpec]:
    """Matrices with and without biases found by name or by spec, and tensors that belong to none; in any order."""
    found: dict[str, TensorSpec] = {}
    for layer in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
        axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
        found[f"{layer}.weight"] = TensorSpec("float32", shape, "", axis)
        kind = draw(st.sampled_from(["none", "by name", "by spec", "other size"]))
        units = shape[axis or 0] if shape else 1
        if kind == "by spec" and len(shape) > 1:
            found[f"{layer}.shift"] = TensorSpec("float32", (units,), f"{layer}.weight")
        if kind in ("by name", "by spec"):
            found[f"{layer}.bias"] = TensorSpec("float32", (units,))
        if kind == "other size":
            found[f"{layer}.bias"] = TensorSpec("float32", (units + 1,))
    order = draw(st.permutations(list(found)))
    return {name: found[name] for name in order}


@given(tensors(), PARTITIONS, st.integers(1, 40))
@settings(deadline=None)
def test_every_element_belongs_to_exactly_one_block(
    specs: dict[str, TensorSpec], partition: str, inputs: int
) -> None:
    plan = plan_blocks(specs, partition, inputs)
    assert plan.elements == sum(spec.elements for spec in specs.values())
    flat = np.arange(plan.elements)
    values = [group_values(group, flat) for group in plan.groups]
    assert sorted(np.concatenate([array.ravel() for array in values])) == flat.tolist()
    assert sum(group.count * group.size for group in plan.groups) == plan.elements


@given(tensors(), PARTITIONS, st.integers(1, 40))
@settings(deadline=None)
def test_every_block_has_a_number_a_name_and_a_size_of_its_own(
    specs: dict[str, TensorSpec], partition: str, inputs: int
) -> None:
    plan = plan_blocks(specs, partition, inputs)
    found = block_values(plan, np.arange(plan.elements))  # numbers are unique, or it fails
    assert len(found) == plan.block_count  # so are names
    assert [plan.size(number) for number in range(plan.block_count)] == [len(v) for v in found.values()]
    for group in plan.groups:
        assert group.count == len(group.numbers)
        assert {plan.size(number) for number in group.numbers} == {group.size}
        assert list(group.numbers) == sorted(group.numbers)


@given(tensors())
@settings(deadline=None)
def test_a_node_is_what_indexing_the_tensors_gives(specs: dict[str, TensorSpec]) -> None:
    plan = plan_blocks(specs, "node")
    found = block_values(plan, np.arange(plan.elements))
    bounds = np.cumsum([0, *(spec.elements for spec in specs.values())])
    arrays = {
        name: np.arange(start, start + spec.elements).reshape(spec.shape)
        for (name, spec), start in zip(specs.items(), bounds, strict=False)
    }
    for name, spec in specs.items():
        if len(spec.shape) < 2:
            continue
        layer, axis = name.removesuffix(".weight"), spec.node_axis or 0
        joined = [other for other in specs if other in (f"{layer}.bias", f"{layer}.shift")]
        joined = [other for other in joined if specs[other].shape == (spec.shape[axis],)]
        for unit in range(spec.shape[axis]):
            expected = arrays[name].take(unit, axis).flatten().tolist()
            assert found[f"{layer}[{unit}]"] == expected + [int(arrays[other][unit]) for other in joined]


@given(tensors(), st.integers(1, 40))
@settings(deadline=None)
def test_the_chunks_of_a_unit_are_its_node_in_order(specs: dict[str, TensorSpec], inputs: int) -> None:
    nodes = plan_blocks(specs, "node")
    chunks = plan_blocks(specs, "quasi_node", inputs)
    assert len(chunks.groups) <= 2 * len(specs)
    flat = np.arange(nodes.elements)
    whole = block_values(nodes, flat)
    joined: dict[str, list[int]] = {}
    for name, values in block_values(chunks, flat).items():
        node = name.rpartition("[")[0] if name.count("[") == 2 else name
        joined.setdefault(node, []).extend(values)
    assert joined == whole


@given(tensors(), st.integers(1, 40))
@settings(deadline=None)
def test_a_chunk_has_as_many_inputs_as_asked_or_as_can_be_kept_together(
    specs: dict[str, TensorSpec], inputs: int
) -> None:
    plan = plan_blocks(specs, "quasi_node", inputs)
    ranges = [name[name.rindex("[") + 1 : -1].split(":") for name in map(plan.name, range(plan.block_count))
              if ":" in name]  # fmt: skip
    behind = [
        math.prod(spec.shape[spec.node_axis + 1 :]) if spec.node_axis else 1
        for spec in specs.values()
        if len(spec.shape) > 1
    ]
    assert all(int(stop) - int(start) <= max(inputs, *behind, 1) for start, stop in ranges)
