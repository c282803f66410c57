"""Arrays cut into messages: on the event loop or, where they are narrowed, on workers; whole, or given up midway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from koopcast.codec import Chunk, decode_answer
from koopcast.wire import CHUNK_BYTES, ELEMENT_BYTES, checksum, widen
from koopcast_server.engine import Engine
from koopcast_server.outgoing import chunk_messages


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine("cpu", workers=2, threads=1)
    yield made
    made.close()


def values(count: int, dtype: str = "float32") -> np.ndarray:
    return np.linspace(-1.0, 1.0, count, dtype=dtype)


@pytest.mark.parametrize("wire_dtype", sorted(ELEMENT_BYTES))
@pytest.mark.parametrize("chunks", [0.5, 1, 1.001, 9.3])
async def test_the_chunks_are_the_array(engine: Engine, wire_dtype: str, chunks: float) -> None:
    flat = values(int(chunks * CHUNK_BYTES / ELEMENT_BYTES[wire_dtype]))
    data, sizes = bytearray(), []
    async for size, message in chunk_messages(engine, flat, wire_dtype):
        chunk = decode_answer(message)
        assert isinstance(chunk, Chunk)
        assert (chunk.offset, chunk.crc32c, len(chunk.data)) == (len(data), checksum(chunk.data), size)
        data += chunk.data
        sizes.append(size)
    assert set(sizes[:-1]) <= {CHUNK_BYTES}
    assert len(sizes) == -(-len(data) // CHUNK_BYTES)
    exact = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(wire_dtype, 0.0)
    np.testing.assert_allclose(widen(bytes(data), wire_dtype), flat, rtol=exact, atol=1e-7)


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
async def test_one_that_is_given_up_leaves_nothing_under_way(engine: Engine, wire_dtype: str) -> None:
    async with contextlib.aclosing(chunk_messages(engine, values(8_000_000), wire_dtype)) as messages:
        await anext(messages)
    assert engine.waiting == 0
