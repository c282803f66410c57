"""The device, and the worker threads that use it. With `held_window` the only code that touches the device.

Blocking work runs on a few worker threads behind a bounded queue, so that the event loop stays free and a burst
of requests waits instead of piling up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

import psutil
import torch

from koopcast_server.held_grams import HeldGrams
from koopcast_server.held_window import HeldWindow, rehearse
from koopcast_server.window_shape import JobShape

__all__ = ["DeviceMissing", "Engine", "finished"]

P = ParamSpec("P")
R = TypeVar("R")

_QUEUED_CALLS_PER_WORKER: Final = 16
_CHECK_SECONDS: Final = 5.0
_WORKER_NICENESS: Final = 5


class DeviceMissing(RuntimeError):
    """The device that was asked for is not there."""


class Engine:
    """The device and the worker threads that use it."""

    def __init__(self, device: str, workers: int, threads: int = 0) -> None:
        """Find the device.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            workers: worker threads.
            threads: threads of a single computation on the CPU; 0 leaves torch's setting alone.

        Raises:
            DeviceMissing: a device that was asked for is not there.
        """
        self.device = _resolve(device)
        if threads:
            torch.set_num_threads(threads)
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="koopcast-engine", initializer=_step_back)
        self._places = asyncio.Semaphore(workers * _QUEUED_CALLS_PER_WORKER)
        self.waiting = 0

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs blocking work on a worker thread; waits for a place in the queue first.

        Cancelling the caller does not abandon the work: this returns only when the thread is done with the
        caller's memory.
        """
        self.waiting += 1
        try:
            async with self._places:
                future = asyncio.get_running_loop().run_in_executor(
                    self._pool, lambda: function(*args, **kwargs)
                )
                return await finished(future)
        finally:
            self.waiting -= 1

    def new_window(self, shape: JobShape) -> HeldWindow | HeldGrams:
        """A window on the device, or the products of one that the trainer holds."""
        return HeldGrams(shape) if shape.holders else HeldWindow(shape, self.device)

    async def check(self) -> None:
        """Shows that a worker answers and the device computes.

        Raises:
            RuntimeError, TimeoutError: it does not.
        """
        summing = asyncio.ensure_future(self.run(_sum_on, self.device))
        done, _ = await asyncio.wait({summing}, timeout=_CHECK_SECONDS)
        if not done:  # not cancelled: `run` would wait for the thread all the same
            raise TimeoutError(f"no worker answered within {_CHECK_SECONDS:.0f} s")
        total = summing.result()
        if total != 3.0:
            raise RuntimeError(f"the device {self.device} computes 1 + 2 = {total}")

    async def rehearse(self) -> None:
        """Runs a tiny job once, so that the first real one does not wait for libraries to load their parts."""
        await self.run(rehearse, self.device)

    def free_memory_bytes(self) -> int:
        """Memory the device has free now."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return int(free)
        return int(psutil.virtual_memory().available)

    def describe(self) -> str:
        """The device, for people."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        threads = torch.get_num_threads()
        return f"cpu ({self._workers} workers, {threads} thread{'s' if threads > 1 else ''} each)"

    def close(self) -> None:
        """Stops the worker threads when their work is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def finished(future: asyncio.Future[R]) -> R:
    """Waits for work that must not be left half done: a cancelled caller, too, goes on only when it has ended."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):  # raised again below
                await asyncio.wait([future])
        raise


def _resolve(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceMissing(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise DeviceMissing(
            f"device {device} was asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices; use --device auto to run on the CPU where there is none"
        )
    if resolved.type not in {"cpu", "cuda"}:
        raise DeviceMissing(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
    return resolved


def _step_back() -> None:
    """Lets the event loop's thread go first: on a full machine a health check must not wait for a Gram row."""
    if sys.platform == "linux":  # only there a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WORKER_NICENESS)


def _sum_on(device: torch.device) -> float:
    return float(torch.tensor([1.0, 2.0], device=device).sum())
