"""Gram rows on their way in: which may follow, and the parts of shards until all of a snapshot have come.

A shard sends its parts in order; shards need not wait for each other, but none may be more than a window ahead of the
slowest. A newer segment, of whichever shard, drops what is incomplete of the older one: a shard that is gone keeps
nothing from going on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from koopcast.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from koopcast.gram import GramRow
from koopcast_server.judging import Verdict
from koopcast_server.steps import Newest, check_follows, check_numbers

__all__ = ["GramRows", "RowIdentity"]


@dataclass(frozen=True, slots=True)
class RowIdentity:
    """What a row's message says of its snapshot.

    Attributes:
        segment: at least 1.
        step: trainer step.
        averaging: mean of so many last steps.
        clock: the snapshot's clock; the step where none was given.
        shard_index: whose part it is.
        digest: crc32c of the numbers, big-endian.
    """

    segment: int
    step: int
    averaging: int
    clock: float
    shard_index: int
    digest: bytes


@dataclass(slots=True)
class _Shard:
    """What a shard has sent of the segment."""

    newest: Newest
    sent: int
    digests: deque[tuple[int, bytes]]


@dataclass(slots=True)
class _Pending:
    """A snapshot of which some parts have come."""

    first: RowIdentity
    parts: dict[int, GramRow] = field(default_factory=dict)


class GramRows:
    """The rows of one job.

    Attributes:
        segment: the newest segment of which any part came.
    """

    def __init__(self, *, shards: int, length: int, stride: int) -> None:
        """Begin with none.

        Args:
            shards: parts that make a snapshot.
            length: weight snapshots in a full window; as many may be incomplete at a time.
            stride: trainer steps between snapshots.
        """
        self._count = shards
        self._length = length
        self._stride = stride
        self._first: RowIdentity | None = None  # the segment's first row, whoever sent it
        self._begin(0)

    def judge(self, row: RowIdentity) -> Verdict:
        """What is to become of a row: the rules of segments and steps, for each shard.

        Raises:
            InvalidArgument: as `steps.check_follows`, or a part whose time is not that of the other shards'.
            FailedPrecondition: a step that does not rise, or shards that are a window behind.
            AlreadyExists: the step is held with other numbers.
        """
        check_numbers(row)
        if row.segment < self.segment:
            return "superseded"
        shard = self._shards.get(row.shard_index)
        if row.segment > self.segment:
            return "new"
        if shard is None:
            self._check_first(row)
        else:
            held = next((digest for step, digest in shard.digests if step == row.step), None)
            if held == row.digest:
                return "duplicate"
            if held is not None:
                raise AlreadyExists(
                    f"step {row.step} of segment {row.segment} is held with other products",
                    reason="OTHER_BYTES",
                    step=row.step,
                    segment=row.segment,
                )
            check_follows(shard.newest, row, self._stride)
        self._check_place(row)
        return "new"

    def velocities_with(self, row: RowIdentity) -> int:
        """Velocities that the window holds with a new row's snapshot."""
        shard = self._shards.get(row.shard_index) if row.segment == self.segment else None
        return 0 if shard is None else min(shard.sent, self._length - 1)

    def add(self, row: RowIdentity, part: GramRow) -> list[GramRow] | None:
        """Keep a part that was judged new; all parts in the order of the shards, where this was the last one."""
        if row.segment > self.segment:
            self._begin(row.segment)
        newest = Newest(row.segment, row.step, row.averaging, row.clock)
        shard = self._shards.setdefault(row.shard_index, _Shard(newest, 0, deque(maxlen=2 * self._length)))
        shard.newest, shard.sent = newest, shard.sent + 1
        shard.digests.append((row.step, row.digest))
        pending = self._pending.setdefault(row.step, _Pending(row))
        self._first = pending.first if self._first is None else self._first
        pending.parts[row.shard_index] = part
        if len(pending.parts) < self._count:
            return None
        del self._pending[row.step]
        return [pending.parts[index] for index in range(self._count)]

    def _begin(self, segment: int) -> None:
        self.segment = segment
        self._shards: dict[int, _Shard] = {}
        self._pending: dict[int, _Pending] = {}
        self._first = None

    def _check_first(self, row: RowIdentity) -> None:
        """A shard's first row of a segment that others have begun."""
        if self._first is not None and row.step != self._first.step:
            raise InvalidArgument(
                f"shard {row.shard_index} begins segment {row.segment} at step {row.step}, shard "
                f"{self._first.shard_index} began it at {self._first.step}; all shards must begin a segment at the same "
                "step: start a new one",
                reason="SHARDS_DIFFER",
                field="step",
                step=row.step,
                expected=self._first.step,
            )

    def _check_place(self, row: RowIdentity) -> None:
        """There is room for its snapshot, and it is the one that the other shards mean."""
        pending = self._pending.get(row.step)
        if pending is None:
            if len(self._pending) >= self._length:
                behind = [index for index in range(self._count) if index not in self._oldest().parts]
                raise FailedPrecondition(
                    f"shard {behind[0]} has sent nothing of step {self._oldest().first.step} and is {self._length} "
                    "snapshots behind this one: start a new segment on all shards once it is back",
                    reason="SHARD_BEHIND",
                    shard_index=behind[0],
                    step=self._oldest().first.step,
                )
            return
        first = pending.first
        for name in ("averaging", "clock"):
            ours, theirs = getattr(row, name), getattr(first, name)
            if ours != theirs:
                raise InvalidArgument(
                    f"shard {row.shard_index} gives step {row.step} the {name} {ours}, shard {first.shard_index} gave it "
                    f"{theirs}: they must agree",
                    reason="SHARDS_DIFFER",
                    field=name,
                )

    def _oldest(self) -> _Pending:
        return next(iter(self._pending.values()))
