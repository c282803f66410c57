"""Clocks, processes of their own, and tables: what the engine's benchmarks share."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Generic, ParamSpec, TypeVar

import torch

__all__ = ["apart", "machine", "median_seconds", "milliseconds", "table"]

P = ParamSpec("P")
T = TypeVar("T")

_LEFT_OUT: Final = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""They make OpenBLAS run kernels of another processor: NumPy, and PyDMD with it, would look slow for no reason."""
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def apart(threads: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process in which torch and NumPy have so many threads each.

    Args:
        threads: at least 1.
        function: of a module, so that the new process finds it.
        args: its arguments; they and what it returns are pickled.
        kwargs: likewise.
    """
    with _environment(threads):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_Call(threads, function), *args, **kwargs).result()


def median_seconds(work: Callable[[], object], rounds: int, *, least: float = 0.05) -> float:
    """Median time of `work`, called once before the clock runs. Unit: seconds.

    Args:
        work: what is timed.
        rounds: times it is called; short work more often, until `least` has gone by, 50 times at most.
        least: seconds.
    """
    work()
    times: list[float] = []
    while len(times) < rounds or (sum(times) < least and len(times) < 50):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def milliseconds(seconds: float) -> str:
    """A time as the tables show it: three digits."""
    return f"{seconds * 1e3:,.{max(0, 2 - len(str(int(seconds * 1e3))) + 1)}f} ms"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What the figures were measured on: processor, memory, versions."""
    model = next(_lines("/proc/cpuinfo", "model name"), platform.machine())
    memory = next(_lines("/proc/meminfo", "MemTotal"), "0 kB")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pydmd"))
    return (
        f"{os.cpu_count()} cores ({model}), {int(memory.split()[0]) / 2**20:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}; load when it began {os.getloadavg()[0]:.1f}"
    )


def _lines(path: str, name: str) -> Iterator[str]:
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                yield line.partition(":")[2].strip()


@dataclass(frozen=True, slots=True)
class _Call(Generic[P, T]):
    """A function and torch's threads, in one thing that can be pickled."""

    threads: int
    function: Callable[P, T]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        torch.set_num_threads(self.threads)
        return self.function(*args, **kwargs)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    before = dict(os.environ)
    for name in _LEFT_OUT:
        os.environ.pop(name, None)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
