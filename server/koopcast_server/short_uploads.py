"""A snapshot that arrives in one message: how it lands, and when it counts."""

from __future__ import annotations

from typing import Final

from koopcast.codec import Chunk
from koopcast.errors import DataLoss
from koopcast.wire import checksum
from koopcast_server.judging import Verdict
from koopcast_server.uploads import Upload, UploadStream

__all__ = ["land_whole"]

_FEW_RUNS: Final = 4
"""Runs of tensors of one type that land at once where they are short: each takes some microseconds, however short."""


async def land_whole(upload: Upload, data: memoryview) -> Verdict:
    """Lands all bytes of a snapshot and publishes it, as a stream would whose chunks and commit all came together.

    Args:
        upload: of this snapshot, whose header said its digest; given up when this returns.
        data: its bytes, as encoded.

    Raises:
        InvalidArgument: not finite.
        DataLoss: the checksum does not match.
        LeaseLost: the job was taken over, closed, or a newer upload began.
        KoopcastError: as `judge`, for what came in between.
    """
    job = upload.job
    stream = UploadStream(upload)
    try:
        if len(job.layout.runs) <= _FEW_RUNS and upload.lands_at_once(len(data)):
            upload.check_current(stream)
            _write(upload, data)
        else:
            async with job.device_lock:
                upload.check_current(stream)
                await upload.engine.run(_write, upload, data)
        return await stream.commit(upload.snapshot.digest)
    finally:
        await stream.end(resumable=False)


def _write(upload: Upload, data: memoryview) -> None:
    """Puts the bytes into the slot as the chunks that they would have come in; blocks."""
    digest = int.from_bytes(upload.snapshot.digest, "big")
    runs = upload.job.layout.runs
    if upload.code is not None or len(runs) == 1:
        upload.write([Chunk(0, data, digest)])
        return
    if checksum(data) != digest:
        raise DataLoss(
            "the bytes do not match the digest in the header; push the snapshot again",
            reason="CHECKSUM_MISMATCH",
        )
    pieces = [(run.first_byte, data[run.first_byte : run.end_byte]) for run in runs]
    upload.write([Chunk(start, piece, checksum(piece)) for start, piece in pieces])
