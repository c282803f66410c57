"""How much faster are pushes through shared memory, and how much could they be? A prototype beside them, in one run.

    python tests/bench/transfer/shm.py [--mib 256] [--rounds 9] [--json FILE] [--table]

The sender copies chunks into a ring in shared memory and says so over a Unix socket; the receiver copies each one into an
array of its own and then looks at the copy (a sender could change the ring after the look): the checksum, where there is
one, and whether every value is finite. Slots are given back over the socket. That is what any implementation must do;
this one does nothing else: no messages, no event loop, no offsets to resume from, and one sender. It is the most that
shared memory could bring. The same with the chunks on the socket itself shows what of it is the memory's merit, and what
that of doing nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from credentials import make_credentials
from koopcast.wire import checksum
from recording import MIB, machine, read_record, spread, table, write_into, write_record
from transfer.contenders import Contender, Koopcast, RawSocket, peer
from transfer.measure import Workplace
from transfer.peers import read_exactly

CHUNK: Final = MIB
SLOTS: Final = 8
_NOTE: Final = struct.Struct("<QII")
"""Offset in the snapshot, bytes of the chunk, crc32c (0: none)."""
_RING: Final = b"R"
_SOCKET: Final = b"S"
README: Final = Path(__file__).with_name("README.md")
Floats = npt.NDArray[np.float32]


class SharedMemory:
    """The sender: a ring of slots, and a socket to tell of them."""

    def __init__(self, address: Mapping[str, str], *, checked: bool) -> None:
        """Attach to the receiver's ring."""
        self.name = "prototype, checksums" if checked else "prototype, no checksums"
        self.receiver = 0
        self._checked = checked
        self._ring = shared_memory.SharedMemory(address["ring"])
        resource_tracker.unregister(self._ring._name, "shared_memory")  # type: ignore[attr-defined]  # the receiver unlinks it
        self._slots = _slots_of(self._ring)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address["unix"])
        self._socket.sendall(_RING)

    def send(self, array: Floats) -> None:
        """Moves `array` there; returns when the receiver has all of it."""
        data, free, slot = array.view(np.uint8), SLOTS, 0
        for start in range(0, len(data), CHUNK):
            if not free:
                free = len(self._socket.recv(SLOTS))
            chunk = data[start : start + CHUNK]
            self._slots[slot, : len(chunk)] = chunk
            crc32c = checksum(self._slots[slot, : len(chunk)]) if self._checked else 0
            self._socket.sendall(_NOTE.pack(start, len(chunk), crc32c))
            slot, free = (slot + 1) % SLOTS, free - 1
        while free < SLOTS:
            free += len(self._socket.recv(SLOTS))

    def fetch(self, out: Floats) -> None:
        """There is no way back."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""
        del self._slots
        self._ring.close()
        self._socket.close()


class LeanSocket:
    """The same, with the chunks on the socket and checksums."""

    def __init__(self, address: Mapping[str, str]) -> None:
        """Connect."""
        self.name = "Unix socket, as lean, checksums"
        self.receiver = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address["unix"])
        self._socket.sendall(_SOCKET)

    def send(self, array: Floats) -> None:
        """Moves `array` there; returns when the receiver has all of it."""
        data, open_chunks = array.view(np.uint8), 0
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            self._socket.sendall(_NOTE.pack(start, len(chunk), checksum(chunk)))
            self._socket.sendall(chunk.data)
            open_chunks += 1
        while open_chunks:
            open_chunks -= len(self._socket.recv(open_chunks))

    def fetch(self, out: Floats) -> None:
        """There is no way back."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()


def receive(directory: Path, nbytes: int) -> None:
    """The receiver: prints its addresses, takes one sender after the other."""
    store = np.ones(nbytes // 4, np.float32)
    ring = shared_memory.SharedMemory(create=True, size=SLOTS * CHUNK)
    slots = _slots_of(ring)
    slots[:] = 1  # resident
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path := f"{directory}/shm-{os.getpid()}.sock")
    listener.listen()
    print(json.dumps({"unix": path, "ring": ring.name}), flush=True)
    try:
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(1) == _RING:
                    _take_from_ring(connection, slots, store)
                else:
                    _take_from_socket(connection, store)
    finally:
        del slots
        ring.close()
        ring.unlink()


def _take_from_ring(connection: socket.socket, slots: npt.NDArray[np.uint8], store: Floats) -> None:
    memory, slot, pending = store.view(np.uint8), 0, b""
    while notes := connection.recv(_NOTE.size * SLOTS):
        pending += notes
        while len(pending) >= _NOTE.size:
            offset, count, crc32c = _NOTE.unpack_from(pending)
            pending = pending[_NOTE.size :]
            memory[offset : offset + count] = slots[slot, :count]
            _look_at(memory[offset : offset + count], crc32c)
            connection.sendall(b"k")
            slot = (slot + 1) % SLOTS


def _take_from_socket(connection: socket.socket, store: Floats) -> None:
    memory, note = store.view(np.uint8), bytearray(_NOTE.size)
    while read_exactly(connection, memoryview(note)):
        offset, count, crc32c = _NOTE.unpack(note)
        if not read_exactly(connection, memory.data[offset : offset + count]):
            raise ConnectionError("the sender ended within a chunk")
        _look_at(memory[offset : offset + count], crc32c)
        connection.sendall(b"k")


def _look_at(landed: npt.NDArray[np.uint8], crc32c: int) -> None:
    if crc32c and checksum(landed) != crc32c:
        raise ValueError("a chunk arrived changed")
    values = landed.view(np.float32)
    if not (np.isfinite(values.max()) and np.isfinite(values.min())):
        raise ValueError("a chunk is not finite")


def _slots_of(ring: shared_memory.SharedMemory) -> npt.NDArray[np.uint8]:
    assert ring.buf is not None
    return np.frombuffer(ring.buf, np.uint8).reshape(SLOTS, CHUNK)


@contextlib.contextmanager
def receiver(directory: Path, nbytes: int) -> Iterator[dict[str, str]]:
    """A receiving process; gives its addresses."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--receive", str(directory), "--mib", str(nbytes // MIB)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(2)  # KeyboardInterrupt: it unlinks the ring


def measure(nbytes: int, rounds: int, directory: Path) -> dict[str, Any]:
    """The record: seconds of every turn, by contender."""
    make_credentials(directory)
    array = np.random.default_rng(1).standard_normal(nbytes // 4, np.float32)
    times: dict[str, list[float]] = {}
    workplace = Workplace(directory, rounds, ("--memory-limit", "8GiB"))
    with contextlib.ExitStack() as stack:
        unix, _, _ = stack.enter_context(workplace.service("unix"))
        tcp, _, _ = stack.enter_context(workplace.service("tcp"))
        sockets = stack.enter_context(peer("socket", nbytes, directory))
        ring = stack.enter_context(receiver(directory, nbytes))
        ours = [
            _named(Koopcast(target, nbytes // 4, sharing=sharing), f"koopcast push, {way}{what}")
            for sharing, what in ((False, ""), (True, ", shared memory"))
            for way, target in (("Unix socket", unix), ("TCP", tcp))
        ]
        raw = RawSocket("unix", sockets["unix"], directory)
        raw.name = "raw Unix socket, nothing checked"
        for lap in range(rounds + 4):
            for contender in (*ours, *_contenders(raw, ring)):
                started = time.perf_counter()
                contender.send(array)
                if lap >= 4:  # the window is full, and every page of it touched
                    times.setdefault(contender.name, []).append(time.perf_counter() - started)
                if isinstance(contender, Koopcast):
                    contender.settle()
                if isinstance(contender, SharedMemory | LeanSocket):
                    contender.close()
            array *= np.float32(0.999)
        raw.close()
        for each in ours:
            each.close()
    return {"machine": machine("grpcio", "numpy"), "bytes": nbytes, "seconds": times}


def _named(contender: Koopcast, name: str) -> Koopcast:
    contender.name = name
    return contender


def _contenders(raw: RawSocket, ring: Mapping[str, str]) -> Iterator[Contender]:
    """The prototype's are made anew each time: its receiver takes one sender after the other."""
    yield raw
    yield LeanSocket(ring)
    yield SharedMemory(ring, checked=True)
    yield SharedMemory(ring, checked=False)


def markdown(record: Mapping[str, Any]) -> str:
    """The table."""
    ours = np.array(next(iter(record["seconds"].values())))
    rows = [
        [
            name,
            spread([record["bytes"] / 1e9 / value for value in values]),
            f"{np.median(ours / np.array(values)):.2f}",
        ]
        for name, values in record["seconds"].items()
    ]
    head = [f"{record['bytes'] / MIB:g} MiB", "GB/s", "times the first"]
    return f"Measured on {record['machine']}.\n\n{table(head, rows)}"


def main() -> None:
    """Measure, or read a record; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive is not None:
        with contextlib.suppress(KeyboardInterrupt):
            receive(options.receive, options.mib * MIB)
        return
    if options.source is not None:
        record = read_record(options.source)
    else:
        with tempfile.TemporaryDirectory(prefix="koopcast-bench-") as directory:
            record = measure(options.mib * MIB, options.rounds, Path(directory))
        write_record(options.json, record)
    print(markdown(record))
    if options.table:
        write_into(README, "shared memory", markdown(record))


if __name__ == "__main__":
    main()
