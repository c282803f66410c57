"""The codec of the two bulk messages beside the generated code: microseconds a message and GB/s, in one run.

    python tests/bench/transfer/codec.py [--json FILE]

Both sides of a message: to write one from an array's memory, and to read one until its data is at hand. The median of
several rounds that alternate between the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from koopcast.codec import Chunk, decode_push_request, encode_chunk
from koopcast.v1 import snapshot_pb2

SIZES: Final = (4 << 10, 64 << 10, 1 << 20, 2 << 20)
_ROUNDS: Final = 15
_OFFSET: Final = 1 << 30
_CRC32C: Final = 0x12345678


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {f"{size >> 10} KiB": measure(size) for size in SIZES}
    print("| chunk | write, codec | write, generated | read, codec | read, generated |")
    print("|---|---|---|---|---|")
    for name, seconds in figures.items():
        size = 1024 * int(name.partition(" ")[0])
        cells = (f"{1e6 * value:.1f} µs, {size / value / 1e9:.1f} GB/s" for value in seconds.values())
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(size: int) -> dict[str, float]:
    """Seconds a message, by what is done."""
    data = np.arange(size // 4, dtype=np.float32).data
    message = encode_chunk(_OFFSET, data, _CRC32C)
    ways: dict[str, Callable[[], object]] = {
        "write, codec": lambda: encode_chunk(_OFFSET, data, _CRC32C),
        "write, generated": lambda: _generated(data).SerializeToString(),
        "read, codec": lambda: _codec_data(message),
        "read, generated": lambda: snapshot_pb2.PushSnapshotRequest.FromString(message).chunk.data,
    }
    repeats = max(10, (64 << 20) // size // _ROUNDS)
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(repeats):
                way()
            rounds[name].append((time.perf_counter() - started) / repeats)
    return {name: statistics.median(times) for name, times in rounds.items()}


def _generated(data: memoryview) -> snapshot_pb2.PushSnapshotRequest:
    chunk = snapshot_pb2.SnapshotChunk(offset=_OFFSET, data=data.tobytes(), crc32c=_CRC32C)
    return snapshot_pb2.PushSnapshotRequest(chunk=chunk)


def _codec_data(message: bytes) -> memoryview:
    chunk = decode_push_request(message)
    assert isinstance(chunk, Chunk)
    return chunk.data


if __name__ == "__main__":
    main()
