"""Runs cells in processes: untimed ones beside each other, timed ones alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from acceleration.service import ONE_THREAD, local_service
from acceleration.training import Cell, train_cell
from koopcast_server.demo.data import DemoError
from koopcast_server.demo.tasks import TASKS

__all__ = ["Failed", "run_cells"]

Keep = Callable[[Cell, dict[str, Any]], None]
"""Told of every cell that is done, with its record."""


class Failed(RuntimeError):
    """Something went wrong that is not the method's doing."""


def run_cells(cells: Sequence[Cell], workers: int, keep: Keep, *, skip_missing: bool) -> None:
    """Run cells in their order, with a koopcast service beside them; those whose data are missing are left out.

    Args:
        cells: untimed ones run first.
        workers: processes for these.
        keep: is told of every cell that is done.
        skip_missing: missing data are no failure.

    Raises:
        Failed: some failed; all others are done.
        KeyboardInterrupt: at once; the runs under way are lost.
    """
    if not cells:
        return
    os.environ.update(ONE_THREAD)  # the processes inherit it
    errors: list[str] = []
    with local_service() as service:
        with _processes(1) as pool:
            missing = {task: pool.submit(missing_data, task).result() for task in _tasks(cells)}
        for message in filter(None, missing.values()):
            errors += [] if skip_missing else [message]
            print(f"left out: {message}", flush=True)
        present = [cell for cell in cells if not missing[cell.task]]
        untimed = [cell for cell in present if not cell.timed]
        timed = [cell for cell in present if cell.timed]
        progress = _Progress(len(untimed), len(timed), workers)
        for some, count in ((untimed, workers), (timed, 1)):
            errors += _run_some(some, count, service, keep, progress)
    if errors:
        raise Failed(f"{len(errors)} failures, the last one: {errors[-1]}")


def missing_data(task: str) -> str:
    """What is missing to run a task; empty: nothing."""
    try:
        TASKS[task].make(0)
    except DemoError as error:
        return f"{task}: {error}"
    return ""


def _tasks(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in cells))


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of their own, spawned: torch's threads do not survive a fork. Interrupts are this process's business."""
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # waits for the runs under way: seconds


def _run_some(cells: Sequence[Cell], count: int, service: str, keep: Keep, progress: _Progress) -> list[str]:
    """What failed, in words."""
    errors: list[str] = []
    if not cells:
        return errors
    with _processes(count) as pool:
        futures = {pool.submit(train_cell, cell, service): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            try:
                record = future.result()
            except BrokenProcessPool as error:
                return [*errors, f"a process died at or before {_words(cell)}: {error}"]
            except Exception as error:  # noqa: BLE001  # one cell's failure must not end a table of twelve hours
                traceback.print_exception(error)
                errors.append(f"{_words(cell)}: {error!r}")
            else:
                if trouble := _trouble(record):
                    errors.append(f"{_words(cell)}: {trouble}")
                else:
                    keep(cell, record)
            progress.tell(cell)
    return errors


def _trouble(record: dict[str, Any]) -> str:
    """Why a run is none of the method's: it was to have a service, and had none. It will be run again."""
    facts = record["facts"]
    if facts.get("connected_at_start") is False:
        return "no connection to the service at the first step"
    errors = facts.get("stats", {}).get("service_errors", 0)
    return f"{errors} calls to the service failed" if errors else ""


def _words(cell: Cell) -> str:
    return f"{cell.task}, {cell.optimizer}, {cell.method}, seed {cell.seed}{', timed' * cell.timed}"


class _Progress:
    """Prints how far it is. Timed cells take as long as others, but one at a time."""

    def __init__(self, untimed: int, timed: int, workers: int) -> None:
        self._total = untimed + timed
        self._left = {False: untimed, True: timed}
        self._workers = {False: workers, True: 1}
        self._started = time.monotonic()
        self._work = 0.0
        self._last = self._started

    def tell(self, cell: Cell) -> None:
        """One more cell is done."""
        now = time.monotonic()
        self._work += (now - self._last) * self._workers[cell.timed]
        self._last = now
        self._left[cell.timed] -= 1
        done = self._total - sum(self._left.values())
        a_cell = self._work / done
        left = sum(a_cell * count / self._workers[timed] for timed, count in self._left.items())
        print(f"{done} of {self._total}, {_duration(left)} left: {_words(cell)}", flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
