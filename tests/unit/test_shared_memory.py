"""The ring that a client offers, and how the service takes what it is offered: real files, no service."""

from __future__ import annotations

import dataclasses
import os
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import koopcast
from koopcast.shared_memory import LEAST_SNAPSHOT_BYTES, Places, SharedRing
from koopcast_server.grpc_decoding import is_on_this_host
from koopcast_server.shared_memory import Offer, OfferedMemory

DIRECTORY = Path("/dev/shm")
HERE = "127.0.0.1:1"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is /dev/shm on Linux only")


def ours() -> set[str]:
    return {path.name for path in DIRECTORY.glob("koopcast-*")}


def path_of(ring: SharedRing) -> Path:
    return DIRECTORY / ring.offer.name


def offer_of(ring: SharedRing) -> Offer:
    return Offer(ring.offer.name, ring.offer.size_bytes, ring.offer.nonce)


@pytest.fixture
def ring() -> Iterator[SharedRing]:
    made = SharedRing(1 << 20)
    yield made
    made.close()


@pytest.fixture
def opened(ring: SharedRing) -> Iterator[OfferedMemory]:
    memory = OfferedMemory.open_offered(offer_of(ring))
    assert memory is not None
    yield memory
    memory.close()


def test_chunks_that_are_not_acknowledged_never_share_a_byte() -> None:
    """Any sizes, acks at any time; and when all is acknowledged there is room for a chunk as long as the ring."""
    generator = random.Random(3)
    for _ in range(50):
        first, end = 10, 10 + generator.randint(20, 400)
        places, landed, stop = Places(first, end), 0, 0
        under_way: list[tuple[int, int, int]] = []
        full = 0
        for _ in range(300):
            nbytes = generator.randint(1, (end - first) // generator.choice([1, 3, 8]))
            position = places.take(nbytes, stop + nbytes, landed)
            if position is None:
                full += 1
                landed = under_way[generator.randrange(len(under_way))][2]
                under_way = [chunk for chunk in under_way if chunk[2] > landed]
                continue
            assert first <= position
            assert position + nbytes <= end
            assert all(position + nbytes <= begin or position >= behind for begin, behind, _ in under_way)
            stop += nbytes
            under_way.append((position, position + nbytes, stop))
        assert full > 0
        assert places.take(end - first, stop + end - first, stop) == first


def test_what_is_written_is_read(ring: SharedRing, opened: OfferedMemory) -> None:
    data = secrets.token_bytes(70_000)
    ring.unlink()
    ring.write(5000, memoryview(data))
    found = bytearray(len(data))
    opened.read_into(5000, memoryview(found))
    assert bytes(found) == data


def test_the_file_is_the_owners_alone_and_loses_its_name_once(ring: SharedRing) -> None:
    assert path_of(ring).stat().st_mode & 0o777 == 0o600
    assert path_of(ring).stat().st_blocks * 512 >= ring.offer.size_bytes  # there is memory for all of it
    ring.unlink()
    assert ring.offer.name not in ours()
    path_of(ring).touch()  # somebody else's, under the same name
    ring.close()
    assert ring.offer.name in ours()
    path_of(ring).unlink()
    assert not ring.usable


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("nonce", b"n" * 32),
        ("nonce", b""),
        ("nbytes", (1 << 20) + 4097),
        ("nbytes", (64 << 20) + 1),
        ("nbytes", 0),
        ("name", "koopcast-" + "0" * 32),
        ("name", ""),
        ("name", ".."),
        ("name", "koopcast-" + "A" * 32),
    ],
)
def test_an_offer_that_is_wrong_in_one_thing_is_not_taken(
    ring: SharedRing, change: str, value: object
) -> None:
    wrong = dataclasses.replace(offer_of(ring), **{change: value})  # type: ignore[arg-type]  # by name
    assert OfferedMemory.open_offered(wrong) is None


@pytest.mark.parametrize("form", ["../dev/shm/{}", "./{}", "{}/", "{}\n", "/dev/shm/{}", "{}\0"])
def test_a_name_is_no_path(ring: SharedRing, form: str) -> None:
    named = dataclasses.replace(offer_of(ring), name=form.format(ring.offer.name))
    assert OfferedMemory.open_offered(named) is None


@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
def test_only_files_are_opened(ring: SharedRing, kind: str) -> None:
    """And nobody waits for the other end of a pipe."""
    there = DIRECTORY / f"koopcast-{secrets.token_hex(16)}"
    offer = dataclasses.replace(offer_of(ring), name=there.name)
    try:
        if kind == "symlink":
            there.symlink_to(path_of(ring))
        elif kind == "pipe":
            os.mkfifo(there)
        else:
            there.mkdir()
        assert OfferedMemory.open_offered(offer) is None
    finally:
        if kind == "directory":
            there.rmdir()
        else:
            there.unlink()


def test_a_truncated_file_is_a_loss_of_data(ring: SharedRing, opened: OfferedMemory) -> None:
    os.truncate(path_of(ring), 6000)
    with pytest.raises(koopcast.DataLoss) as caught:
        opened.read_into(5000, memoryview(bytearray(4096)))
    assert caught.value.reason == "SHARED_MEMORY_GONE"
    opened.read_into(5000, memoryview(bytearray(1000)))


def test_memory_that_is_closed_is_not_read(opened: OfferedMemory) -> None:
    opened.close()
    opened.close()
    with pytest.raises(koopcast.DataLoss) as caught:
        opened.read_into(5000, memoryview(bytearray(1)))
    assert caught.value.reason == "SHARED_MEMORY_GONE"


def test_closing_under_a_reader_gives_no_other_files_bytes(ring: SharedRing, opened: OfferedMemory) -> None:
    """The number of the descriptor is taken by another file as soon as it is free."""
    ring.write(4096, memoryview(b"a" * (1 << 20)))
    seen: set[bytes] = set()

    def read() -> None:
        found = bytearray(1 << 20)
        while True:
            try:
                opened.read_into(4096, memoryview(found))
            except koopcast.DataLoss:
                return
            seen.add(bytes(found[:1] + found[-1:]))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    while not seen:
        pass
    opened.close()
    others = [os.open("/dev/zero", os.O_RDONLY) for _ in range(8)]
    for reader in readers:
        reader.join()
    for other in others:
        os.close(other)
    assert seen == {b"aa"}


def test_a_forked_process_leaves_the_ring_alone(ring: SharedRing) -> None:
    child = os.fork()
    if not child:
        harmless = not ring.usable
        ring.close()
        os._exit(0 if harmless else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ring.usable
    assert ring.offer.name in ours()


def test_without_room_there_is_no_ring_and_nothing_left() -> None:
    code = (
        "import resource, koopcast.shared_memory as shared\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"assert shared.SharedRing.for_job({HERE!r}, 1 << 30) is None\n"
        "assert not shared._linked"
    )
    before = ours()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert ours() <= before


def test_a_process_that_ends_while_it_opens_a_job_leaves_nothing() -> None:
    code = f"from koopcast.shared_memory import SharedRing\nprint(SharedRing.for_job({HERE!r}, 1 << 30).offer.name)"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert ended.stdout.startswith("koopcast-")
    assert ended.stdout.strip() not in ours()


def test_only_long_snapshots_for_services_here_have_a_ring() -> None:
    assert SharedRing.for_job("elsewhere.example:1", 1 << 30) is None
    assert SharedRing.for_job(HERE, LEAST_SNAPSHOT_BYTES - 1) is None
    made = SharedRing.for_job("unix:/nowhere", LEAST_SNAPSHOT_BYTES)
    assert made is not None
    made.close()


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("unix:", True),
        ("unix:/run/koopcast.sock", True),
        ("ipv4:127.0.0.1:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv4:10.0.0.7:4711", False),
        ("ipv6:%5B2001:db8::1%5D:4711", False),
        ("vsock:3:4711", False),
        ("", False),
    ],
)
def test_who_is_on_this_host(peer: str, here: bool) -> None:
    assert is_on_this_host(peer) is here
