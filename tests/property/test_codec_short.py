"""The codec and the generated code say the same of a snapshot in one message, and write the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koopcast import codec
from koopcast.codec import decode_short_push, encode_short_push, is_short_push
from koopcast.v1 import snapshot_pb2, tensor_pb2

Request = snapshot_pb2.PushShortSnapshotRequest
NUMBERS = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    snapshot_pb2.SnapshotHeader,
    job=st.text(max_size=20),
    segment=NUMBERS,
    step=NUMBERS,
    digest=st.binary(max_size=4),
    tensors=st.lists(st.builds(tensor_pb2.TensorSpec, name=st.text(max_size=90)), max_size=3),
)
DATA = st.binary(max_size=300)


def told(read: Callable[[bytes], Any], data: bytes) -> tuple[bytes, bytes] | None:
    """Header and data; None where the bytes are refused."""
    try:
        request = read(data)
    except DecodeError:
        return None
    return request.header.SerializeToString(deterministic=True), bytes(request.data)


def same(data: bytes) -> None:
    assert told(decode_short_push, data) == told(Request.FromString, data)


@given(HEADERS, DATA)
@settings(deadline=None)
def test_it_writes_and_reads_what_the_generated_code_does(
    header: snapshot_pb2.SnapshotHeader, data: bytes
) -> None:
    message = encode_short_push(header.SerializeToString(), data)
    assert message == Request(header=header, data=data).SerializeToString()
    assert is_short_push(message) == bool(data)
    same(message)


@pytest.mark.parametrize("size", [1, 127, 128, 1 << 14, 1 << 20, 2 << 20])
def test_sizes_at_which_lengths_grow_a_byte(size: int) -> None:
    header = snapshot_pb2.SnapshotHeader(job="j" * 124)
    for near in (size - 1, size, size + 1):
        data = np.full(near, 7, np.uint8)
        message = encode_short_push(header.SerializeToString(), data.data)
        assert message == Request(header=header, data=data.tobytes()).SerializeToString()
        same(message)


def test_data_is_a_view_of_its_message() -> None:
    message = encode_short_push(snapshot_pb2.SnapshotHeader(step=5).SerializeToString(), b"payload")
    data = decode_short_push(message).data
    assert data.obj is message
    assert data.readonly


@given(HEADERS, DATA, st.data())
@settings(deadline=None)
def test_cut_too_long_or_changed_it_is_read_alike(
    header: snapshot_pb2.SnapshotHeader, data: bytes, draw: st.DataObject
) -> None:
    message = encode_short_push(header.SerializeToString(), data)
    same(message[: draw.draw(st.integers(0, len(message)), "cut at")])
    same(message + draw.draw(st.binary(max_size=20), "more"))
    changed = bytearray(message)
    changes = st.tuples(st.integers(0, len(message) - 1), st.integers(0, 255))
    for position, value in draw.draw(st.lists(changes, min_size=1, max_size=4), "changes"):
        changed[position] = value
    same(bytes(changed))


@given(st.lists(st.sampled_from([b"\x0a\x00", b"\x0a\x02\x18\x05", b"\x12\x01a", b"\x12\x00", b"\x1a\x01b"])))
@example([b"\x0a\x80\x00", b"\x12\x01a"])  # a length that is longer than needed
@example([b"\x0a\x00", b"\x12\x81\x00a"])
@example([b"\x0a" + b"\xff" * 9 + b"\x01", b"\x12\x01a"])  # 2**64 - 1 bytes
@example([b"\x0a\x01\xff", b"\x12\x01a"])  # no header
@settings(deadline=None)
def test_any_fields_in_any_order_are_read_alike(fields: list[bytes]) -> None:
    same(b"".join(fields))


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=400)
def test_anything_is_read_alike(data: bytes) -> None:
    same(data)


def test_the_fast_path_takes_what_the_codec_writes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    message = encode_short_push(b"\x18\x05", b"data")
    for other in (message + b"\x12\x00", message[:-1], message[4:] + message[:4], b"\x0a\x00" + message):
        assert not is_short_push(other)
    monkeypatch.delattr(snapshot_pb2, "PushShortSnapshotRequest")
    assert codec.decode_short_push(message).header.segment == 5


def test_a_long_header_is_none_to_read_on_the_event_loop() -> None:
    header = snapshot_pb2.SnapshotHeader(tensors=[tensor_pb2.TensorSpec(name="t" * 500)] * 200)
    assert not is_short_push(encode_short_push(header.SerializeToString(), b"data"))
