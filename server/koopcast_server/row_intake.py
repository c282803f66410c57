"""One Gram row into its job: judged, kept until all shards have sent theirs, then part of the window."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Final

from koopcast.errors import InvalidArgument, LeaseLost
from koopcast.gram import GramRow
from koopcast.gram_messages import row_from_message
from koopcast.v1 import snapshot_pb2
from koopcast.wire import checksum
from koopcast_server.engine import Engine, finished
from koopcast_server.gram_rows import RowIdentity
from koopcast_server.job import Job

__all__ = ["take_row"]

_LARGE_BYTES: Final = 16 << 10
"""Rows above this are read on a worker, so that the event loop stays free."""


async def take_row(job: Job, message: snapshot_pb2.PushGramRowRequest, engine: Engine) -> str:
    """Takes a row: ``accepted``, ``duplicate`` or ``superseded``.

    Raises:
        InvalidArgument: a value out of range, a row of another length than the window, or one that is not finite.
        FailedPrecondition: the service holds this job's window; a step that does not rise; shards that are far behind.
        AlreadyExists: the step is held with other numbers.
        LeaseLost: the job was closed, or taken over, in the meantime.
    """
    grams, rows = job.grams
    nbytes = message.ByteSize()
    digest = (await engine.run(_digest, message)) if nbytes > _LARGE_BYTES else _digest(message)
    row = _identity(message, job, digest)
    async with job.device_lock:
        if job.closed:
            raise LeaseLost(f"job {job.name!r} was closed before this row", reason="JOB_CLOSED")
        job.lease.renew(job.name, message.lease_id)
        verdict = rows.judge(row)
        if verdict != "new":
            return verdict
        velocities, with_state = rows.velocities_with(row), job.spec.operator.observable == "state"

        def read() -> GramRow:
            return row_from_message(message, grams.block_count, velocities, with_state=with_state)

        part = (await engine.run(read)) if nbytes > _LARGE_BYTES else read()
        job.counters.bytes_received += nbytes
        parts = rows.add(row, part)
        if parts is not None:  # once begun it ends, cancelled or not: products and notes must agree
            await finished(asyncio.ensure_future(_publish(job, row, parts, engine)))
        return "accepted"


async def _publish(job: Job, row: RowIdentity, parts: list[GramRow], engine: Engine) -> None:
    grams, _ = job.grams
    starts_segment = row.segment > job.segment
    await engine.run(grams.take, parts, starts_segment=starts_segment)
    if starts_segment:
        job.clocks.clear()
    job.segment, job.step, job.averaging = row.segment, row.step, row.averaging
    job.clocks.append(row.clock)
    job.version += 1
    job.counters.snapshots_accepted += 1
    job.counters.pushed = datetime.now(UTC)


def _identity(message: snapshot_pb2.PushGramRowRequest, job: Job, digest: bytes) -> RowIdentity:
    if message.shard_index >= job.spec.shard_count:
        raise InvalidArgument(
            f"shard_index is {message.shard_index}; the job has {job.spec.shard_count} shards, counted from 0",
            field="shard_index",
        )
    if message.HasField("clock") and not math.isfinite(message.clock):
        raise InvalidArgument("clock must be finite", field="clock")
    clock = message.clock if message.HasField("clock") else float(message.step)
    averaging = max(1, message.averaging)
    return RowIdentity(message.segment, message.step, averaging, clock, message.shard_index, digest)


def _digest(message: snapshot_pb2.PushGramRowRequest) -> bytes:
    """crc32c of the numbers alone: a row sent again is the same one, whoever holds the lease by then."""
    numbers = snapshot_pb2.PushGramRowRequest(
        velocity_products=message.velocity_products,
        weight_products=message.weight_products,
        weights_squared=message.weights_squared,
    )
    return checksum(numbers.SerializeToString()).to_bytes(4, "big")
