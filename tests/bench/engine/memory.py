"""Memory beside the window: how far a push and an answer raise the resident memory of a process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.jobs import RANK, Job, matrix_of, one_block
from engine.measuring import apart, table
from koopcast.operator import Observable, Operator, Partition
from koopcast_server.answering import Answer

__all__ = ["Case", "measure"]

LENGTH = 16
ALLOWED = 64 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """So many blocks of so many elements."""

    blocks: int
    size: int
    observable: Observable = "velocity"


@dataclass(frozen=True, slots=True)
class Peaks:
    """Unit: bytes.

    Attributes:
        window: what it says that it holds.
        publish: above the resident memory before it.
        solve: likewise.
        combine: likewise, into a displacement that is there already.
    """

    window: int
    publish: int
    solve: int
    combine: int


def measure(cases: Sequence[Case], threads: int) -> str:
    """The table, each case in a process of its own."""
    rows = []
    for case in cases:
        found = apart(threads, peaks, case)
        most = max(found.publish, found.combine)
        rows.append(
            [
                f"{case.blocks:,} × {case.size:,}",
                case.observable,
                f"{found.window / 1e6:,.0f} MB",
                *(f"{value / 2**20:.1f} MiB" for value in (found.publish, found.combine, found.solve)),
                "yes" if most <= ALLOWED else "**no**",
            ]
        )
    head = ("blocks", "observable", "window", "publish", "combine", "solve", "both within 64 MiB")
    return table(head, rows)


def peaks(case: Case) -> Peaks:
    """Fill, answer, and watch. A small job before it brings libraries and their buffers into memory."""
    partition: Partition = "network" if case.blocks == 1 else "node"
    operator = Operator(observable=case.observable, partition=partition, window=LENGTH, rank=RANK)
    small = Job(one_block(4096) if case.blocks == 1 else matrix_of(64, case.size), operator)
    small.fill()
    small.answer()
    job = Job(one_block(case.size) if case.blocks == 1 else matrix_of(case.blocks, case.size), operator)
    _touch(job)
    out = torch.zeros(job.elements)
    publish = _raised_by(job.fill)
    answers: list[Answer] = []
    solve = _raised_by(lambda: answers.append(job.solve()))
    combine = _raised_by(lambda: job.write(answers[0], out))
    return Peaks(job.window.nbytes, publish, solve, combine)


def _touch(job: Job) -> None:
    """Have every page of the window: memory that was only asked for is not resident."""
    window = job.window
    tensors = [window._slots.velocities, window._slots.last, window._slots.spare]
    for gram in window._grams:
        if gram is not None:
            tensors += [gram.velocity_rows, gram.weight_rows, gram.weights_squared]
    for tensor in tensors:
        tensor.fill_(0.0)


def _raised_by(work: Callable[[], object]) -> int:
    """Bytes by which the peak of the resident memory passes what was resident before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what is taken
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"this system does not tell {name}")
