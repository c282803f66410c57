"""Finds one block among those of a job, of which the service tells a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from koopcast.prediction import Block
from koopcast.status import JobStatus

__all__ = ["FoundBlock", "PlotError", "find_block"]

_PAGE: Final = 1024
"""Blocks asked for at once; with their modes they are a megabyte or two."""

AskStatus = Callable[[str, int, int], JobStatus]
"""`koopcast.Client.job_status`: job, first block, most blocks."""


class PlotError(Exception):
    """There is nothing to plot; the text says why."""


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """A block and the job that it belongs to.

    Attributes:
        status: the job's state as it was told together with the block.
        block: the block.
        number: its number in the partition, from 0.
    """

    status: JobStatus
    block: Block
    number: int

    @property
    def total(self) -> int:
        """Blocks of the partition."""
        return _total(self.status)


def find_block(ask: AskStatus, job: str, wanted: str | None) -> FoundBlock:
    """The block of this number or name; where several have the name, the first.

    Args:
        ask: the client's `job_status`.
        job: the job's name.
        wanted: a number from 0, or a name; None: the first block.

    Raises:
        PlotError: the job has no operator yet, or no such block.
        KoopcastError: what `ask` raises.
    """
    if wanted is None or (wanted.isdecimal() and len(wanted) < 10):
        number = int(wanted or 0)
        status = ask(job, number, 1)
        _refuse_without_operator(status)
        if number < _total(status) and status.blocks:
            return FoundBlock(status, status.blocks[0], number)
    else:
        status = ask(job, 0, _PAGE)
        _refuse_without_operator(status)
        for first, page in _pages(ask, job, status):
            for index, block in enumerate(page.blocks):
                if block.name == wanted:
                    return FoundBlock(page, block, first + index)
    total = _total(status)
    known = ", ".join(block.name for block in ask(job, 0, 5).blocks)
    raise PlotError(
        f"job {job!r} has no block {wanted!r}; it has {total}, numbered from 0: {known}{', ...' if total > 5 else ''}"
    )


def _pages(ask: AskStatus, job: str, status: JobStatus) -> Iterator[tuple[int, JobStatus]]:
    """All pages, and the number of the first block of each; `status` is the first page."""
    first = 0
    while status.blocks:
        yield first, status
        first += len(status.blocks)
        if first >= _total(status):
            return
        status = ask(job, first, _PAGE)


def _total(status: JobStatus) -> int:
    return 0 if status.summary is None else status.summary.blocks


def _refuse_without_operator(status: JobStatus) -> None:
    if _total(status) == 0:
        raise PlotError(
            f"job {status.name!r} has no operator yet: it needs {status.operator.minimum_snapshots} snapshots and holds "
            f"{status.snapshots_held}"
        )
