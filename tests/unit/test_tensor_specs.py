"""What a spec says of units stays with it: through `describe`, the layout and the wire."""

from __future__ import annotations

import numpy as np
import pytest

import koopcast
from koopcast.messages import tensors_from_messages, tensors_to_messages
from koopcast.v1 import tensor_pb2
from koopcast.wire import Layout, TensorSpec, describe

SPECS = {
    "up.weight": TensorSpec("float32", (3, 4, 2), node_axis=1),
    "up.bias": TensorSpec("float32", (4,), node_of="up.weight"),
    "fc.weight": TensorSpec("float32", (5, 2), node_axis=0),
    "plain": TensorSpec("float64", (5, 2)),
}


def test_units_survive_the_wire() -> None:
    sent = [message.SerializeToString() for message in tensors_to_messages(SPECS)]
    received = tensors_from_messages(map(tensor_pb2.TensorSpec.FromString, sent))
    assert list(received.items()) == list(SPECS.items())


def test_axis_0_and_no_axis_are_told_apart() -> None:
    given, absent = tensors_to_messages({name: SPECS[name] for name in ("fc.weight", "plain")})
    assert given.HasField("node_axis")
    assert not absent.HasField("node_axis")


def test_specs_that_differ_in_units_differ() -> None:
    plain = TensorSpec("float32", (4, 4))
    assert len({plain, TensorSpec("float32", (4, 4), "x"), TensorSpec("float32", (4, 4), "", 1)}) == 3
    assert plain == TensorSpec("float32", (4, 4), "", None)


def test_describe_keeps_the_units_of_a_spec_and_arrays_have_none() -> None:
    assert {name: describe(name, spec) for name, spec in SPECS.items()} == SPECS
    assert describe("w", np.ones((2, 3))) == TensorSpec("float64", (2, 3))


def test_arrays_are_packed_by_a_layout_that_knows_units() -> None:
    arrays = {
        name: np.full(spec.shape, index, spec.dtype) for index, (name, spec) in enumerate(SPECS.items())
    }
    layout = Layout({name: describe(name, spec) for name, spec in SPECS.items()})
    flat = layout.unpack(layout.pack(arrays), "float64")
    assert {name: array.flat[0] for name, array in layout.split(flat).items()} == dict(
        zip(SPECS, range(4), strict=True)
    )
    assert layout.specs == SPECS


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (TensorSpec("float32", (2, 3), node_axis=2), ValueError),
        (TensorSpec("float32", (2, 3), node_axis=-1), ValueError),
        (TensorSpec("float32", (), node_axis=0), ValueError),
        (TensorSpec("float32", (2, 3), node_axis=True), TypeError),
        (TensorSpec("float32", (2, 3), node_axis="1"), TypeError),  # type: ignore[arg-type]  # a caller without types
        (TensorSpec("float32", (2,), node_of=None), TypeError),  # type: ignore[arg-type]  # likewise
    ],
)
def test_units_that_cannot_be_are_found_before_any_call(spec: TensorSpec, error: type[Exception]) -> None:
    with pytest.raises(koopcast.InvalidArgument, match=r"'w'.*node_") as raised:
        describe("w", spec)
    assert isinstance(raised.value, error)


def test_a_long_node_of_and_a_shard_are_refused() -> None:
    message = tensor_pb2.TensorSpec(name="b", dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=[2])
    message.node_of = "w" * 512
    assert tensors_from_messages([message])["b"].node_of == "w" * 512
    message.node_of = "w" * 513
    with pytest.raises(koopcast.InvalidArgument, match="512"):
        tensors_from_messages([message])
    message.node_of = ""
    message.shard.stop = 1
    with pytest.raises(koopcast.InvalidArgument, match="shard"):
        tensors_from_messages([message])
