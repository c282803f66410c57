"""What the C library does with the buffers of chunks. In processes of their own: its settings last as long as those."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from services import REPOSITORY

ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")

PASSING_THROUGH = """
import resource, sys
from koopcast_server.allocator import keep_freed_memory
if sys.argv[1] == "keeping":
    assert keep_freed_memory()
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        buffers = [b"x" * (1 << 20) for _ in range(8)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(10)
print(faults(50))
"""

IN_THREADS = """
import ctypes, sys, threading
from koopcast_server.allocator import keep_freed_memory
if sys.argv[1] == "keeping":
    assert keep_freed_memory()
done = threading.Barrier(7)
def work():
    b"x" * (1 << 20)
    done.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
done.wait()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def page_faults(way: str) -> int:
    """Of fifty times eight buffers of 1 MiB, or 102,400 pages."""
    command = [sys.executable, "-c", PASSING_THROUGH, way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout)


def arenas(way: str) -> int:
    """That six threads have made."""
    command = [sys.executable, "-c", IN_THREADS, way]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    return told.count("<heap nr=")


@ON_GLIBC
def test_a_burst_of_threads_leaves_no_arena_each() -> None:
    assert arenas("keeping") <= 2
    assert arenas("by default") > 2


@ON_GLIBC
def test_buffers_are_kept_for_the_next_ones() -> None:
    assert page_faults("keeping") < 500
    assert page_faults("by default") > 50_000
