"""The service's resident memory: while several clients push at once, and over uploads that are cancelled."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any, Final

import grpc
import numpy as np

import koopcast
import raw
from koopcast.v1 import snapshot_pb2
from recording import MIB, status_bytes
from services import running_service

__all__ = ["cancelled", "pushed"]

_STRIDE: Final = 10
_ROOM: Final = ("--memory-limit", "12GiB", "--log-level", "warning")


def pushed(clients: int, nbytes: int, rounds: int) -> dict[str, Any]:
    """Peak resident memory of the service while so many clients push snapshots of `nbytes` side by side.

    The windows hold three snapshots. The peak is the kernel's (VmHWM). `windows`: what the jobs were said to take, less
    the one answer that each of them may have under way: nobody asks for one here.
    """
    array = np.random.default_rng(3).standard_normal(nbytes // 4, np.float32)  # one for all of them
    with running_service(*_ROOM) as service:
        process_id = service.process.pid
        idle = status_bytes("VmRSS", process_id)
        jobs, connections = [], []
        for number in range(clients):
            client = koopcast.connect(service.target, timeout_seconds=120.0)
            connections.append(client)
            jobs.append(
                client.open_job(
                    f"memory-{number}", {"w": array}, stride=_STRIDE, operator=koopcast.Operator(window=3)
                )
            )
        windows = sum(job.memory_bytes - nbytes for job in jobs)
        threads = [threading.Thread(target=_push, args=(job, array, rounds)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {
            "clients": clients,
            "bytes": nbytes,
            "rounds": rounds,
            "idle": idle,
            "windows": windows,
            "peak": status_bytes("VmHWM", process_id),
            "resident after": status_bytes("VmRSS", process_id),
            "held": [job.snapshots_held for job in jobs],
        }
        for client in connections:
            client.close()
    return found


def _push(job: koopcast.Job, array: Any, rounds: int) -> None:
    for index in range(rounds):
        job.push(_STRIDE * index, {"w": array})


def cancelled(uploads: int, nbytes: int, sent: int) -> dict[str, Any]:
    """Resident memory of the service over uploads of `nbytes` that their client cancels after `sent` chunks."""
    array = np.ones(nbytes // 4, np.float32)
    with running_service(*_ROOM) as service, koopcast.connect(service.target, timeout_seconds=60.0) as client:
        job = client.open_job("cancelled", {"w": array}, stride=_STRIDE)
        job.push(0, {"w": array})
        messages = raw.upload(job, {"w": array}, step=_STRIDE)[: sent + 1]
        resident = []
        with raw.stubs(service.target) as stubs:
            for number in range(uploads + 1):
                if not number % max(1, uploads // 20):
                    resident.append(status_bytes("VmRSS", service.process.pid))
                _cancel(stubs, messages)
        job.push(_STRIDE, {"w": array})  # the job still takes snapshots
        held = job.snapshots_held
    if held != 2:
        raise RuntimeError(f"{held} snapshots are held, not 2")
    return {"uploads": uploads, "bytes": nbytes, "sent": sent * MIB, "resident": resident}


def _cancel(stubs: raw.Stubs, messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    """Send these messages, and cancel once the server has taken the first of them."""
    gone, cancel = threading.Event(), threading.Event()

    def requests() -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        yield from messages
        gone.set()
        cancel.wait(timeout=60)

    call = stubs.snapshots.PushSnapshot(requests(), timeout=60)
    next(itertools.islice(call, 1))  # ready: the header was taken
    gone.wait(timeout=60)
    call.cancel()
    cancel.set()
    try:
        list(call)
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call) or error.code() is not grpc.StatusCode.CANCELLED:
            raise
