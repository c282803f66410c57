"""The codec and the generated code say the same of every message, good or bad, and write the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koopcast import codec
from koopcast.codec import Chunk, decode_answer, decode_push_request, encode_chunk, is_chunk
from koopcast.v1 import operator_pb2, prediction_pb2, snapshot_pb2, tensor_pb2

OFFSETS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 127, 128, 2**14, 2**32, 2**63, 2**64 - 1])
DATA = st.binary(max_size=300)
CHECKSUMS = st.integers(0, 2**32 - 1) | st.just(0)


@dataclass(frozen=True)
class Side:
    """One of the two messages: the codec's reading and the generated class."""

    decode: Callable[[bytes], Any]
    message: type[Any]
    chunk: type[Any]


SIDES = [
    Side(decode_push_request, snapshot_pb2.PushSnapshotRequest, snapshot_pb2.SnapshotChunk),
    Side(decode_answer, prediction_pb2.PredictAheadResponse, prediction_pb2.DisplacementChunk),
]
BOTH = pytest.mark.parametrize("side", SIDES, ids=["push", "answer"])


def told(read: Callable[[bytes], Any], data: bytes) -> tuple[Any, ...]:
    """What a reading makes of the bytes, in words that both readings share."""
    try:
        answer = read(data)
    except DecodeError:
        return ("refused",)
    if isinstance(answer, Chunk):
        return ("chunk", answer.offset, bytes(answer.data), answer.crc32c)
    if answer.HasField("chunk"):
        return ("chunk", answer.chunk.offset, answer.chunk.data, answer.chunk.crc32c)
    return ("message", answer.SerializeToString(deterministic=True))


def same(side: Side, data: bytes) -> None:
    assert told(side.decode, data) == told(side.message.FromString, data)


def varint(value: int, padding: int = 0) -> bytes:
    """A varint, longer than needed by so many groups."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    if padding:
        groups[-1] |= 0x80
        groups += b"\x80" * (padding - 1) + b"\x00"
    return bytes(groups)


@BOTH
@given(OFFSETS, DATA, CHECKSUMS)
@settings(deadline=None)
def test_it_writes_what_the_generated_code_writes(side: Side, offset: int, data: bytes, crc32c: int) -> None:
    message = side.message(chunk=side.chunk(offset=offset, data=data, crc32c=crc32c))
    assert encode_chunk(offset, data, crc32c) == message.SerializeToString()


@BOTH
@given(OFFSETS, DATA, CHECKSUMS)
@settings(deadline=None)
def test_it_reads_what_the_generated_code_writes(side: Side, offset: int, data: bytes, crc32c: int) -> None:
    message = side.message(chunk=side.chunk(offset=offset, data=data, crc32c=crc32c)).SerializeToString()
    assert side.decode(message) == Chunk(offset, memoryview(data), crc32c)
    assert is_chunk(message) == bool(data)
    same(side, message)


@BOTH
@pytest.mark.parametrize("size", [1, 127, 128, 1 << 14, 1 << 20, 2 << 20])
def test_sizes_at_which_lengths_grow_a_byte(side: Side, size: int) -> None:
    for near in (size - 1, size, size + 1):
        data = bytes(near)
        message = side.message(chunk=side.chunk(offset=near, data=data, crc32c=7)).SerializeToString()
        assert encode_chunk(near, data, 7) == message
        assert side.decode(message) == Chunk(near, memoryview(data), 7)


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<u2", "u1"])
def test_the_memory_of_an_array_is_data(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    assert encode_chunk(5, array.data, 9) == encode_chunk(5, array.tobytes(), 9)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(OverflowError):
        encode_chunk(-1, b"x", 0)
    with pytest.raises(OverflowError):
        encode_chunk(2**64, b"x", 0)
    with pytest.raises(OverflowError):
        encode_chunk(0, b"x", 2**32)
    with pytest.raises(TypeError):
        encode_chunk(0, np.zeros((4, 4)).data[::2], 0)


@BOTH
def test_data_is_a_view_of_its_message_and_of_no_more(side: Side) -> None:
    message = encode_chunk(3, b"payload", 11)
    data = side.decode(message).data
    assert data.obj is message
    assert data.readonly
    assert data.tobytes() == b"payload"


@BOTH
@given(OFFSETS, DATA, CHECKSUMS, st.data())
@settings(deadline=None)
def test_cut_or_too_long_it_is_read_alike(
    side: Side, offset: int, data: bytes, crc32c: int, draw: st.DataObject
) -> None:
    message = encode_chunk(offset, data, crc32c)
    same(side, message[: draw.draw(st.integers(0, len(message)), "cut at")])
    same(side, message + draw.draw(st.binary(max_size=20), "more"))
    same(side, draw.draw(st.binary(max_size=20), "before") + message)


@BOTH
@given(OFFSETS, st.binary(min_size=1, max_size=300), CHECKSUMS, st.data())
@settings(deadline=None)
def test_with_bytes_changed_it_is_read_alike(
    side: Side, offset: int, data: bytes, crc32c: int, draw: st.DataObject
) -> None:
    message = bytearray(encode_chunk(offset, data, crc32c))
    changes = st.tuples(st.integers(0, min(40, len(message) - 1)), st.integers(0, 255))
    for position, value in draw.draw(st.lists(changes, min_size=1, max_size=4), "changes"):
        message[position] = value
    same(side, bytes(message))


FIELDS = st.one_of(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)).map(lambda v: b"\x08" + varint(*v)),
    st.tuples(DATA, st.integers(0, 3)).map(lambda v: b"\x12" + varint(len(v[0]), v[1]) + v[0]),
    st.binary(min_size=4, max_size=4).map(lambda v: b"\x1d" + v),
    # Wrong wire types of known fields, and unknown fields.
    st.binary(min_size=8, max_size=8).map(lambda v: b"\x09" + v),
    st.integers(0, 2**32).map(lambda v: b"\x10" + varint(v)),
    st.binary(max_size=9).map(lambda v: b"\x1a" + varint(len(v)) + v),
    st.tuples(st.integers(4, 2000), st.binary(max_size=9)).map(
        lambda v: varint(v[0] << 3 | 2) + varint(len(v[1])) + v[1]
    ),
    st.integers(4, 2000).map(lambda v: varint(v << 3 | 3) + varint(v << 3 | 4)),  # a group
    st.binary(max_size=6),
)


@BOTH
@given(st.lists(FIELDS, max_size=5).map(b"".join), st.integers(-3, 3), st.integers(0, 6))
@example(b"\x12\x01a\x08\x05", 0, 0)  # another order
@example(b"\x08\x00\x12\x01a", 0, 0)  # a zero written out
@example(b"\x12\x01a\x1d\x00\x00\x00\x00", 0, 0)
@example(b"\x08" + b"\xff" * 9 + b"\x7f\x12\x01a", 0, 0)  # more than 64 bits
@example(b"\x12" + varint(2**63), 0, 0)
@example(b"\x12" + varint(2**31) + b"a", 0, 0)
@example(b"\x12" + b"\x80" * 11, 0, 0)
@settings(deadline=None, max_examples=400)
def test_any_fields_in_any_order_are_read_alike(side: Side, body: bytes, wrong: int, padding: int) -> None:
    same(side, b"\x12" + varint(max(0, len(body) + wrong), padding) + body)


@BOTH
@given(
    st.lists(st.tuples(OFFSETS, DATA, CHECKSUMS).map(lambda v: encode_chunk(*v)), max_size=3).map(b"".join)
)
@settings(deadline=None)
def test_several_chunks_in_one_message_are_read_alike(side: Side, data: bytes) -> None:
    same(side, data)


@BOTH
@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=400)
def test_anything_is_read_alike(side: Side, data: bytes) -> None:
    same(side, data)


OTHERS: list[Message] = [
    snapshot_pb2.PushSnapshotRequest(
        header=snapshot_pb2.SnapshotHeader(
            job="j", segment=3, step=7, tensors=[tensor_pb2.TensorSpec(name="w", shape=[2, 3])], clock=0.5
        )
    ),
    snapshot_pb2.PushSnapshotRequest(commit=snapshot_pb2.SnapshotCommit(digest=b"1234")),
    snapshot_pb2.PushSnapshotRequest(commit=snapshot_pb2.SnapshotCommit()),
    snapshot_pb2.PushSnapshotRequest(),
    prediction_pb2.PredictAheadResponse(
        report=prediction_pb2.PredictionReport(
            prediction_id="p", steps=2.5, blocks=[operator_pb2.BlockReport(name="network", rank=4)]
        )
    ),
    prediction_pb2.PredictAheadResponse(base=prediction_pb2.BaseSnapshot(step=5, total_bytes=8)),
]


@pytest.mark.parametrize("message", OTHERS, ids=lambda m: f"{type(m).__name__}-{m.WhichOneof('message')}")
def test_messages_of_another_kind_come_as_they_are(message: Message) -> None:
    side = next(side for side in SIDES if isinstance(message, side.message))
    assert side.decode(message.SerializeToString()) == message


@BOTH
@given(OFFSETS, st.binary(min_size=1, max_size=64), CHECKSUMS)
@settings(deadline=None)
def test_the_fast_path_takes_what_the_codec_writes_and_nothing_else(
    side: Side, offset: int, data: bytes, crc32c: int
) -> None:
    message = encode_chunk(offset, data, crc32c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "snapshot_pb2", None)
        patch.setattr(codec, "prediction_pb2", None)
        assert side.decode(message).offset == offset
    for other in (message + b"\x20\x01", message + b"\x12\x00", message[:-1], b"\x20\x01" + message):
        assert not is_chunk(other)
