"""One long block: PyDMD's fit and one evaluation, against a push and an answer of the engine.

PyDMD gets its snapshots as the columns of a matrix that is contiguous by columns, which its LAPACK reads as it is, and
is evaluated at one time only, by one product of its modes with their amplitudes there: what it offers itself
(`reconstructed_data`, `forecast`) takes at least that. It gets the same number of threads, in a process of its own, with
the BLAS kernels that belong to the processor.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.jobs import AHEAD, RANK, Job, Motion, one_block
from engine.measuring import apart, median_seconds, milliseconds, table
from koopcast.operator import Observable, Operator
from koopcast.wire import CHUNK_BYTES, checksum

__all__ = ["PydmdTimes", "agreement", "blas_kernels", "compare", "evaluate", "pydmd_fit"]

Array = npt.NDArray[Any]

LENGTH = 16
OBSERVABLES: tuple[Observable, ...] = ("velocity", "state")
_COMPARED = 1 << 20
"""Elements of the two predictions that are compared: the snapshots repeat after as many."""


@dataclass(frozen=True, slots=True)
class PydmdTimes:
    """PyDMD's times and what it predicts. Unit: seconds."""

    fit: float
    evaluation: float
    svd: float
    change: Array
    blas: str


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Ours. Unit: seconds.

    Attributes:
        solve: Gram matrices to coefficients.
        combine: coefficients to a displacement in new memory.
        answer: both.
        pushes: a whole window copied into its place and published, snapshot by snapshot.
        landed: the same, arriving as checked chunks.
        change: the displacement.
    """

    solve: float
    combine: float
    answer: float
    pushes: float
    landed: float
    change: Array


def compare(elements: Sequence[int], alone: Sequence[int], threads: Sequence[int], rounds: int) -> str:
    """Both tables.

    Args:
        elements: n of the comparisons.
        alone: n that are measured without PyDMD.
        threads: of both sides.
        rounds: times that PyDMD and the engine are measured, in turn.
    """
    kernels: set[str] = set()
    rows: list[list[str]] = []
    for count in threads:
        for size in (*elements, *alone):
            theirs: list[PydmdTimes] = []
            ours: list[dict[Observable, EngineTimes]] = []
            for _ in range(rounds):
                if size in elements:
                    theirs.append(apart(count, pydmd_times, size))
                ours.append({name: apart(count, engine_times, size, name) for name in OBSERVABLES})
            kernels |= {one.blas for one in theirs}
            rows += _rows(size, count, theirs, ours)
    head = (
        "n",
        "threads",
        "observable",
        "PyDMD: fit + evaluation",
        "its SVD alone",
        "answer (solve + combine)",
        "ratio",
        "16 pushes",
        "PyDMD / (pushes + answer)",
        "pushes as checked chunks",
        "predictions differ by",
    )
    return f"{table(head, rows)}\n\nPyDMD ran on {', '.join(sorted(kernels)) or 'nothing: it was not asked'}."


def pydmd_times(elements: int) -> PydmdTimes:
    """Fit and evaluate once; a small fit before it brings everything into memory."""
    motion = Motion(elements)
    snapshots = torch.empty(LENGTH, elements)
    for moment, row in enumerate(snapshots):
        motion.write(moment, row)
    matrix = snapshots.numpy().T
    evaluate(pydmd_fit(matrix[:1000]), LENGTH)
    begin = time.perf_counter()
    fitted = pydmd_fit(matrix)
    middle = time.perf_counter()
    future = evaluate(fitted, LENGTH)
    end = time.perf_counter()
    del fitted
    again = time.perf_counter()
    np.linalg.svd(matrix[:, :-1], full_matrices=False)
    svd = time.perf_counter() - again
    change = (future - matrix[:, -1])[:_COMPARED]
    return PydmdTimes(middle - begin, end - middle, svd, change, blas_kernels())


def pydmd_fit(matrix: Array) -> Any:
    """`DMD(svd_rank=8)` of the columns of a matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data's condition, and of its own imports
        from pydmd import DMD

        return DMD(svd_rank=RANK).fit(matrix)


def evaluate(fitted: Any, length: int) -> Array:
    """One column of what `reconstructed_data` would hold, `AHEAD` behind the last snapshot."""
    amplitudes = fitted.amplitudes * fitted.eigs ** (length - 1 + AHEAD)
    future: Array = (fitted.modes @ amplitudes.astype(fitted.modes.dtype)).real
    return future


def blas_kernels() -> str:
    """Which OpenBLAS kernels NumPy runs, on how many threads."""
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # ships no annotations

    found = {
        f"{one['internal_api']} {one['version']} ({one['architecture']}, {one['num_threads']} threads)"
        for one in threadpool_info()
        if one["user_api"] == "blas" and "numpy" in one["filepath"]
    }
    return ", ".join(sorted(found)) or "an unknown BLAS"


def engine_times(elements: int, observable: Observable) -> EngineTimes:
    """A window streamed in by copies, answers from it, and a window streamed in by chunks."""
    job = Job(one_block(elements), Operator(observable=observable, window=LENGTH, rank=RANK))
    snapshot = torch.empty(elements)
    _stream(job, snapshot, lambda: job.spare.copy_(snapshot))  # every page of the ring is there from now on
    pushes = _stream(job, snapshot, lambda: job.spare.copy_(snapshot))
    rounds = 5 if elements <= 10_000_000 else 3
    answer = median_seconds(job.answer, rounds)
    solved = job.solve()
    solve, combine = (
        median_seconds(job.solve, rounds),
        median_seconds(lambda: job.held.displacement(solved), rounds),
    )
    change = job.held.displacement(solved)[:_COMPARED].numpy().copy()
    return EngineTimes(solve, combine, answer, pushes, _landed(job, snapshot), change)


def agreement(ours: Array, theirs: Array) -> float:
    """Length of the difference of two displacements, relative to theirs."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _stream(job: Job, snapshot: torch.Tensor, place: Callable[[], object]) -> float:
    """Seconds that a window of snapshots takes; making them takes none."""
    job.time = 0
    taken = 0.0
    for moment in range(LENGTH):
        job.motion.write(moment, snapshot)
        begin = time.perf_counter()
        place()
        job.publish()
        taken += time.perf_counter() - begin
    return taken


def _landed(job: Job, snapshot: torch.Tensor) -> float:
    job.time = 0
    taken = 0.0
    for moment in range(LENGTH):
        job.motion.write(moment, snapshot)
        chunks = [(offset, data, checksum(data)) for offset, data in _chunks(snapshot)]
        begin = time.perf_counter()
        for offset, data, crc in chunks:
            job.held.land(offset, data, crc)
        job.publish()
        taken += time.perf_counter() - begin
    return taken


def _chunks(snapshot: torch.Tensor) -> Iterator[tuple[int, bytes]]:
    step = CHUNK_BYTES // 4
    for start in range(0, len(snapshot), step):
        yield 4 * start, snapshot[start : start + step].numpy().tobytes()


def _rows(
    size: int, threads: int, theirs: Sequence[PydmdTimes], ours: Sequence[dict[Observable, EngineTimes]]
) -> Iterator[list[str]]:
    for observable in ours[0]:
        mine = [one[observable] for one in ours]
        answer = statistics.median(one.answer for one in mine)
        pushes = statistics.median(one.pushes for one in mine)
        solve = statistics.median(one.solve for one in mine)
        combine = statistics.median(one.combine for one in mine)
        landed = milliseconds(statistics.median(one.landed for one in mine))
        told = f"{milliseconds(answer)} ({milliseconds(solve)} + {milliseconds(combine)})"
        row = [f"{size:.0e}", str(threads), observable]
        if not theirs:
            yield [*row, "–", "–", told, "–", milliseconds(pushes), "–", landed, "–"]
            continue
        total = statistics.median(one.fit + one.evaluation for one in theirs)
        yield [
            *row,
            milliseconds(total),
            milliseconds(statistics.median(one.svd for one in theirs)),
            told,
            f"{total / answer:.0f}",
            milliseconds(pushes),
            f"{total / (pushes + answer):.1f}",
            landed,
            f"{agreement(mine[0].change, theirs[0].change):.1e}",
        ]
