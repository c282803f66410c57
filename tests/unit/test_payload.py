"""What a raw payload reads: the bytes that `Layout.pack` copies, from wherever the arrays keep them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import koopcast
from koopcast.payload import PUSHED_CHUNK_BYTES, RawPayload
from koopcast.wire import Layout, describe

torch = pytest.importorskip("torch")


def arrays() -> dict[str, Any]:
    """Dense, scattered, byte-swapped and scalar ones, of all types, in runs of one type and of several."""
    generator = np.random.default_rng(3)
    dense = generator.standard_normal((700, 900)).astype(np.float32)
    return {
        "dense": dense,
        "columns": dense[:, ::2],
        "transposed": dense.T,
        "swapped": dense[0].astype(">f4"),
        "scalar": np.float64(0.25) * np.ones(()),
        "half": torch.from_numpy(dense[:9]).to(torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.from_numpy(dense[5:80].copy())),
        "strided": torch.from_numpy(dense)[::3, 1::2],
    }


def layout_of(tensors: dict[str, Any]) -> Layout:
    return Layout({name: describe(name, array) for name, array in tensors.items()})


@pytest.mark.parametrize("keep", [False, True])
def test_chunks_are_the_packed_bytes(keep: bool) -> None:
    tensors = arrays()
    layout = layout_of(tensors)
    payload = RawPayload(layout, tensors, keep=keep)
    ranges = list(payload.ranges(0))
    assert all(0 < stop - start <= PUSHED_CHUNK_BYTES for start, stop in ranges)
    read = b"".join(bytes(payload.read(start, stop)) for start, stop in ranges)
    assert read == layout.pack(tensors).tobytes()
    assert (payload.kept is None) is not keep
    assert payload.kept is None or payload.kept.tobytes() == read


def test_a_chunk_reads_the_same_again_and_after_others() -> None:
    tensors = arrays()
    payload = RawPayload(layout_of(tensors), tensors)
    ranges = list(payload.ranges(0))
    first = [bytes(payload.read(*chunk)) for chunk in ranges]
    assert [bytes(payload.read(*chunk)) for chunk in reversed(ranges)] == first[::-1]


def test_ranges_go_on_from_any_border() -> None:
    tensors = arrays()
    payload = RawPayload(layout_of(tensors), tensors)
    ranges = list(payload.ranges(0))
    for index, (start, _) in enumerate(ranges):
        assert list(payload.ranges(start)) == ranges[index:]
    assert list(payload.ranges(payload.nbytes)) == []


def test_what_lies_dense_is_not_copied() -> None:
    """Neither when the payload is made nor when it is read: the service's bytes come from the caller's memory."""
    dense = np.zeros(PUSHED_CHUNK_BYTES, np.float32)
    payload = RawPayload(layout_of({"w": dense}), {"w": dense})
    dense[:] = 7.0
    for start, stop in payload.ranges(0):
        assert np.shares_memory(np.frombuffer(payload.read(start, stop), np.uint8), dense)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, ValueError),
        ({"w": np.ones(4, np.float32)}, ValueError),
        ({"w": np.ones(3, np.float64)}, ValueError),
        ({"w": np.ones(3, np.float32), "v": np.ones(3, np.float32)}, ValueError),
        ({"w": koopcast.TensorSpec("float32", (3,))}, TypeError),
        ({"w": [1.0, 2.0, 3.0]}, TypeError),
    ],
    ids=["missing", "shape", "dtype", "extra", "spec", "list"],
)
def test_other_tensors_are_refused_before_anything_is_read(
    given: dict[str, Any], kind: type[Exception]
) -> None:
    layout = layout_of({"w": np.ones(3, np.float32)})
    with pytest.raises(kind) as caught:
        RawPayload(layout, given)
    assert isinstance(caught.value, koopcast.InvalidArgument)
