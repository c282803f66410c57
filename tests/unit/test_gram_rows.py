"""Rows on their way in: the rules of segments and steps, shard by shard, and what waits for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from koopcast.errors import AlreadyExists, FailedPrecondition, InvalidArgument, KoopcastError
from koopcast.gram import GramRow
from koopcast_server.gram_rows import GramRows, RowIdentity

STRIDE, LENGTH = 10, 4


def row(step: int, shard: int = 0, segment: int = 1, **others: Any) -> RowIdentity:
    digest = bytes((step % 256, shard, segment, 0))
    return replace(RowIdentity(segment, step, 1, float(step), shard, digest), **others)


def part(velocities: int = 0, value: float = 1.0) -> GramRow:
    return GramRow(np.full((1, velocities), value), np.ones((1, 0)), np.full(1, value))


def rows_of(shards: int) -> GramRows:
    return GramRows(shards=shards, length=LENGTH, stride=STRIDE)


def send(rows: GramRows, *identities: RowIdentity) -> list[list[GramRow] | None]:
    found = []
    for identity in identities:
        assert rows.judge(identity) == "new"
        found.append(rows.add(identity, part(rows.velocities_with(identity), 1.0 + identity.shard_index)))
    return found


def test_one_holder_completes_every_snapshot() -> None:
    rows = rows_of(1)
    widths = []
    for step in range(0, 70, STRIDE):
        widths.append(rows.velocities_with(row(step)))
        (parts,) = send(rows, row(step))
        assert parts is not None
        assert len(parts) == 1
    assert widths == [0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_snapshot_counts_when_the_last_part_has_come_and_parts_keep_their_order(
    order: tuple[int, ...],
) -> None:
    rows = rows_of(3)
    *early, last = send(rows, *(row(0, shard) for shard in order))
    assert early == [None, None]
    assert last is not None
    assert [float(found.squared[0]) for found in last] == [1.0, 2.0, 3.0]


def test_a_shard_may_be_a_window_ahead_but_not_more() -> None:
    rows = rows_of(2)
    send(rows, *(row(step) for step in range(0, LENGTH * STRIDE, STRIDE)))
    ahead = row(LENGTH * STRIDE)
    with pytest.raises(FailedPrecondition, match="shard 1 has sent nothing of step 0") as refused:
        rows.judge(ahead)
    assert refused.value.reason == "SHARD_BEHIND"
    completed = send(rows, row(0, 1))
    assert completed[0] is not None
    send(rows, ahead)
    rest = send(rows, *(row(step, 1) for step in range(STRIDE, (LENGTH + 1) * STRIDE, STRIDE)))
    assert all(parts is not None for parts in rest)


def test_a_newer_segment_drops_what_is_incomplete_whoever_begins_it() -> None:
    rows = rows_of(2)
    send(rows, row(0), row(0, 1), row(STRIDE))
    (begun,) = send(rows, row(500, 1, segment=3))
    assert begun is None
    assert rows.judge(row(STRIDE, 1)) == "superseded"
    assert rows.judge(row(2 * STRIDE)) == "superseded"
    assert rows.judge(row(500, 0, segment=2)) == "superseded"
    assert rows.velocities_with(row(500, 0, segment=3)) == 0
    (parts,) = send(rows, row(500, 0, segment=3))
    assert parts is not None


def test_the_same_row_again_is_a_duplicate_and_another_one_is_refused() -> None:
    rows = rows_of(2)
    send(rows, row(0), row(STRIDE), row(0, 1))
    assert rows.judge(row(0)) == rows.judge(row(STRIDE)) == rows.judge(row(0, 1)) == "duplicate"
    with pytest.raises(AlreadyExists, match="other products"):
        rows.judge(row(STRIDE, digest=b"else"))
    assert rows.judge(row(STRIDE, 1, digest=b"else")) == "new"


@pytest.mark.parametrize(
    ("bad", "error", "field"),
    [
        (row(25, 0), InvalidArgument, "step"),
        (row(5, 0), FailedPrecondition, "step"),
        (row(20, 0, averaging=3), InvalidArgument, "averaging"),
        (row(20, 0, clock=10.0), InvalidArgument, "clock"),
        (row(10, 1, clock=11.0), InvalidArgument, "clock"),
        (row(10, 1, averaging=2), InvalidArgument, "averaging"),
        (row(10, 2), InvalidArgument, "step"),
        (row(20, 0, segment=0), InvalidArgument, "segment"),
        (row(2**54, 0), InvalidArgument, "step"),
    ],
    ids=[
        "off the stride",
        "backwards",
        "averaging",
        "clock",
        "another shard's clock",
        "another shard's averaging",
        "another first step",
        "no segment",
        "too large",
    ],
)
def test_what_does_not_fit_is_refused(bad: RowIdentity, error: type[KoopcastError], field: str) -> None:
    rows = rows_of(3)
    send(rows, row(0), row(0, 1), row(STRIDE))
    with pytest.raises(error) as refused:
        rows.judge(bad)
    assert refused.value.details["field"] == field
    assert rows.judge(row(2 * STRIDE)) == "new"
