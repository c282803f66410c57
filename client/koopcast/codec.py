"""The wire format of the messages that carry bytes, written and read by hand.

A snapshot's chunk on its way up (`PushSnapshotRequest`) and a displacement's chunk on its way down
(`PredictAheadResponse`) are laid out alike: both are field 2 of their message, and both have the fields offset, data
and crc32c. A short snapshot (`PushShortSnapshotRequest`) is a header and its data. The generated code copies `data` several times on either side; here it is copied once to send, and not at
all to read. The bytes are those of the generated code, and what is not in its canonical form is left to it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from koopcast.v1 import prediction_pb2, snapshot_pb2

__all__ = [
    "AnyChunk",
    "Chunk",
    "SharedChunk",
    "ShortPush",
    "decode_answer",
    "decode_push_request",
    "decode_short_push",
    "encode_chunk",
    "encode_shared_chunk",
    "encode_short_push",
    "is_chunk",
    "is_short_push",
]

Buffer = bytes | bytearray | memoryview

_CHUNK_TAG: Final = b"\x12"  # field 2 of the message, length-delimited
_OFFSET_TAG: Final = b"\x08"  # field 1 of the chunk, varint
_DATA_TAG: Final = b"\x12"  # field 2, length-delimited
_CRC32C_TAG: Final = b"\x1d"  # field 3, four bytes
_HEADER_TAG: Final = b"\x0a"  # field 1 of a short snapshot; its data is field 2
_SHORT_HEADER_BYTES: Final = 64 << 10


class Chunk(NamedTuple):
    """Some bytes of a snapshot or an answer.

    Attributes:
        offset: of the first byte. Unit: bytes.
        data: the bytes, read-only; a view of the message, which lives as long as the view does.
        crc32c: their checksum, as the sender has it.
    """

    offset: int
    data: memoryview
    crc32c: int

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return len(self.data)


class SharedChunk(NamedTuple):
    """Some bytes of a snapshot that lie in shared memory.

    Attributes:
        offset: of the first byte in the snapshot. Unit: bytes.
        position: of the first byte in the memory. Unit: bytes.
        nbytes: how many bytes, at least one.
        crc32c: their checksum, as the sender has it.
    """

    offset: int
    position: int
    nbytes: int
    crc32c: int


AnyChunk = Chunk | SharedChunk


class ShortPush(NamedTuple):
    """A whole snapshot.

    Attributes:
        header: what it is.
        data: all its bytes, read-only; a view of the message, which lives as long as the view does.
    """

    header: snapshot_pb2.SnapshotHeader
    data: memoryview


def encode_chunk(offset: int, data: Buffer, crc32c: int) -> bytes:
    """A whole message that holds a chunk: `PushSnapshotRequest` and `PredictAheadResponse` alike.

    Args:
        offset: of the first byte, below 2**64. Unit: bytes.
        data: any contiguous buffer, such as the memoryview of an array; copied once.
        crc32c: its checksum, below 2**32.

    Raises:
        OverflowError: offset or checksum lies out of range.
        TypeError: `data` is not contiguous.
    """
    prefix, suffix = _frame(offset, memoryview(data).nbytes, crc32c)
    return b"".join((prefix, data, suffix))


def encode_shared_chunk(chunk: SharedChunk) -> bytes:
    """A whole `PushSnapshotRequest` that says where a chunk lies in shared memory."""
    message = snapshot_pb2.SnapshotChunk(
        offset=chunk.offset,
        shared_position=chunk.position,
        shared_bytes=chunk.nbytes,
        crc32c=chunk.crc32c,
    )
    return snapshot_pb2.PushSnapshotRequest(chunk=message).SerializeToString()


def encode_short_push(header: bytes, data: Buffer) -> bytes:
    """A whole `PushShortSnapshotRequest`.

    Args:
        header: a serialised `SnapshotHeader`.
        data: any contiguous buffer; copied once.
    """
    size = memoryview(data).nbytes
    prefix = _DATA_TAG + _varint(size) if size else b""
    return b"".join((_HEADER_TAG, _varint(len(header)), header, prefix, data))


def decode_short_push(data: bytes) -> ShortPush:
    """The snapshot in a `PushShortSnapshotRequest`.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no such message.
    """
    found = _canonical_short_push(data)
    if found is None:
        request = snapshot_pb2.PushShortSnapshotRequest.FromString(data)
        return ShortPush(request.header, memoryview(request.data))
    header, content = found
    return ShortPush(snapshot_pb2.SnapshotHeader.FromString(bytes(header)), content)


def is_short_push(data: bytes) -> bool:
    """Whether a message is a short snapshot that is read in microseconds, however much data it has."""
    found = _canonical_short_push(data)
    return found is not None and len(found[0]) <= _SHORT_HEADER_BYTES


def decode_push_request(data: bytes) -> AnyChunk | snapshot_pb2.PushSnapshotRequest:
    """One message of an upload: the chunk where it holds one, otherwise the message.

    A chunk whose bytes are both in the message and elsewhere is none.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no such message.
    """
    chunk = _canonical_chunk(data)
    if chunk is not None:
        return chunk
    request = snapshot_pb2.PushSnapshotRequest.FromString(data)
    pushed = _pushed_chunk(request.chunk) if request.HasField("chunk") else None
    return request if pushed is None else pushed


def decode_answer(data: bytes) -> Chunk | prediction_pb2.PredictAheadResponse:
    """One message of an answer: the chunk where it holds one, otherwise the message.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no such message.
    """
    chunk = _canonical_chunk(data)
    if chunk is not None:
        return chunk
    response = prediction_pb2.PredictAheadResponse.FromString(data)
    return _chunk_of(response.chunk) if response.HasField("chunk") else response


def is_chunk(data: bytes) -> bool:
    """Whether a message is a chunk that is read without copying it: in microseconds, however long it is."""
    return _canonical_chunk(data) is not None


def _pushed_chunk(message: snapshot_pb2.SnapshotChunk) -> AnyChunk | None:
    if not message.shared_bytes:
        return _chunk_of(message)
    if message.data:
        return None
    return SharedChunk(message.offset, message.shared_position, message.shared_bytes, message.crc32c)


def _chunk_of(message: snapshot_pb2.SnapshotChunk | prediction_pb2.DisplacementChunk) -> Chunk:
    return Chunk(message.offset, memoryview(message.data), message.crc32c)


def _canonical_chunk(message: bytes) -> Chunk | None:
    """The chunk that `encode_chunk` made this very message of; None where there is none, or one of no data."""
    if message[:1] != _CHUNK_TAG:
        return None
    offset = 0
    _, position = _read_varint(message, 1)
    if message[position : position + 1] == _OFFSET_TAG:
        offset, position = _read_varint(message, position + 1)
    size, position = _read_varint(message, position + 1)
    end = position + size
    crc32c = int.from_bytes(message[end + 1 : end + 5], "little")
    # What was read so far is a guess. It is right where these numbers give this message and no other.
    prefix, suffix = _frame(offset, size, crc32c)
    is_whole = len(message) == len(prefix) + size + len(suffix)
    if not (size and is_whole and message.startswith(prefix) and message.endswith(suffix)):
        return None
    return Chunk(offset, memoryview(message)[len(prefix) : end], crc32c)


def _canonical_short_push(message: bytes) -> tuple[memoryview, memoryview] | None:
    """Header and data that `encode_short_push` made this very message of; None where there are none, or no data."""
    if message[:1] != _HEADER_TAG:
        return None
    header_size, header_start = _read_varint(message, 1)
    header_end = header_start + header_size
    size, start = _read_varint(message, header_end + 1)
    is_whole = (
        len(message) == start + size
        and message[1:header_start] == _varint(header_size)
        and message[header_end:start] == _DATA_TAG + _varint(size)
    )
    if not (size and is_whole):
        return None
    view = memoryview(message)
    return view[header_start:header_end], view[start:]


def _frame(offset: int, size: int, crc32c: int) -> tuple[bytes, bytes]:
    """What stands before and after the data. Fields that are zero or empty are left out, as protobuf does."""
    offset.to_bytes(8, "little")  # OverflowError where it is out of range
    head = _OFFSET_TAG + _varint(offset) if offset else b""
    if size:
        head += _DATA_TAG + _varint(size)
    suffix = _CRC32C_TAG + crc32c.to_bytes(4, "little") if crc32c else b""
    return _CHUNK_TAG + _varint(len(head) + size + len(suffix)) + head, suffix


def _varint(value: int) -> bytes:
    """A number >= 0 in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and where it ends; 0 where it is cut off, or beyond 64 bits."""
    value = 0
    for shift, group in zip(range(0, 64, 7), message[position : position + 10], strict=False):
        value |= (group & 0x7F) << shift
        position += 1
        if group < 0x80:
            return (value if value < 1 << 64 else 0), position
    return 0, position
