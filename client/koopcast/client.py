"""The light client: connects to a service, opens jobs, keeps their leases alive."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self

from koopcast.arguments import check_finite, check_whole
from koopcast.channel import Connection
from koopcast.embedded import EmbeddedService, acquire_embedded
from koopcast.encoding import EncodingName as Encoding
from koopcast.encoding import check_encoding
from koopcast.errors import ArgumentTypeError, ArgumentValueError, KoopcastError, LeaseLost, NotFound
from koopcast.gram import MAX_SHARDS, WindowHolder
from koopcast.job import Job
from koopcast.messages import DTYPE_NUMBERS, ENCODING_NUMBERS, tensors_to_messages
from koopcast.names import check_job_name
from koopcast.operator import Operator
from koopcast.operator_messages import operator_to_message
from koopcast.shared_memory import SharedRing
from koopcast.status import JobStatus, status_from_message
from koopcast.v1 import job_pb2, job_pb2_grpc
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast.wire import ELEMENT_BYTES, Layout, describe

__all__ = ["Client", "Encoding", "connect"]

IfExists = Literal["resume", "replace", "error"]
_IF_EXISTS: Final[Mapping[str, job_pb2.IfExists]] = {
    "resume": job_pb2.IF_EXISTS_RESUME,
    "replace": job_pb2.IF_EXISTS_REPLACE,
    "error": job_pb2.IF_EXISTS_ERROR,
}
_HOLDERS: Final = ("server", "trainer")
_CLOSE_TIMEOUT_SECONDS: Final = 2.0


def connect(
    target: str | None = None,
    *,
    token: str | None = None,
    ca: str | os.PathLike[str] | bytes | None = None,
    insecure: bool = False,
    timeout_seconds: float = 30.0,
) -> Client:
    """A client of the service at `target`. Nothing is contacted before the first call.

    Args:
        target: ``"host:port"``, ``"unix:/path"``, or None for the embedded service: the same gRPC server inside
            this process, on a private Unix socket (needs ``koopcast[server]``).
        token: bearer token; by default the environment's ``KOOPCAST_TOKEN``.
        ca: certificate file (or its bytes) of the authority that signed the service's certificate, for TLS;
            ``"system"`` trusts the system's.
        insecure: allow a plain connection to another host.
        timeout_seconds: default deadline of a call.

    Raises:
        ArgumentValueError, ArgumentTypeError: a target of another form, an unreadable CA file, a plain connection
            to another host.
        MissingExtra: `target` is None and the server is not installed.
    """
    timeout_seconds = check_finite("timeout_seconds", timeout_seconds)
    if not timeout_seconds > 0:
        raise ArgumentValueError(
            f"timeout_seconds must be > 0, not {timeout_seconds}", field="timeout_seconds"
        )
    if target is None:
        if ca is not None:
            raise ArgumentValueError(
                "the embedded service (target=None) has no TLS: leave ca out", field="ca"
            )
        embedded = acquire_embedded()
        return Client(Connection(embedded.target), timeout_seconds, embedded)
    token = token if token is not None else os.environ.get("KOOPCAST_TOKEN")
    return Client(Connection(target, token=token, ca=ca, insecure=insecure), timeout_seconds, None)


class Client:
    """A connection to one service. Made by `connect`; a context manager; safe to use from several threads."""

    def __init__(
        self, connection: Connection, timeout_seconds: float, embedded: EmbeddedService | None
    ) -> None:
        """Hold a connection; use `connect`."""
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._embedded = embedded
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._heartbeat: threading.Thread | None = None
        self._process_id = os.getpid()

    @property
    def target(self) -> str:
        """Address of the service."""
        return self._connection.target

    def open_job(  # noqa: PLR0913  # named settings of the user's call
        self,
        name: str,
        tensors: Mapping[str, Any],
        *,
        stride: int,
        operator: Operator | None = None,
        if_exists: IfExists = "resume",
        take_over: bool = False,
        lease_id: str = "",
        window_dtype: str | None = None,
        wire_dtype: str | None = None,
        encoding: Encoding = "raw",
        window_holder: WindowHolder = "server",
        shard_count: int = 1,
        shard_index: int = 0,
        shared_lease_id: str = "",
        keep_weights: bool = True,
        shared_memory: bool = True,
        timeout_seconds: float | None = None,
    ) -> Job:
        """Opens a job and takes its lease.

        Args:
            name: ``[A-Za-z0-9._-]{1,128}``.
            tensors: name to NumPy array, torch tensor or TensorSpec; only their dtypes and shapes are used.
            stride: trainer steps between two snapshots, at least 1.
            operator: operator settings; by default ``Operator()``.
            if_exists: ``"resume"`` attaches to a job of the same spec whose lease is free, keeping its window;
                ``"replace"`` frees it and makes a new one; ``"error"`` raises AlreadyExists.
            take_over: take the job even from a live lease; the old holder's calls then raise LeaseLost.
            lease_id: the `Job.lease_id` of an earlier process of this writer: while that lease lives, the job is taken
                over from it; a lease that is not the job's any more is no use, and no error.
            window_dtype: element type of the stored velocities; by default the widest pushed type, float32 for
                half precision.
            wire_dtype: element type of answers, and of the differences that ``encoding="delta"`` sends; by default
                float64 where a tensor is float64, else float32.
            encoding: how snapshots travel. ``"delta"``: as differences from the last one, in `wire_dtype`;
                ``"delta-int8"``: in a byte an element, with a scale for each 256 of them. Both round, and each snapshot
                makes good what the one before lost; the first one is sent whole.
            window_holder: ``"trainer"``: the snapshots stay in the trainer (`koopcast.window.held.TrainerWindow`), which
                sends Gram rows and gets coefficients; ``"server"``: they are pushed.
            shard_count: with ``"trainer"``, processes that hold a part of the window each. `tensors` are then still the
                whole ones, and snapshots count when all parts have come.
            shard_index: which of them this one is, from 0.
            shared_lease_id: the `Job.lease_id` of the process that opened the job first: the others join its lease.
            keep_weights: keep a copy of the last snapshot pushed, from which `Prediction.weights` is made. Without it
                that snapshot is fetched from the service by whoever looks at `weights`, while the window stays as it is.
            shared_memory: where the service is on this host and a snapshot has 4 MiB or more, share up to 16 MiB of memory
                with it (in /dev/shm, charged to this process), through which snapshots go faster than through a socket.
                Where it cannot be shared they go through the socket.
            timeout_seconds: deadline; by default the client's.

        Raises:
            ArgumentValueError, ArgumentTypeError: a bad name, tensor, stride or setting.
            AlreadyExists: another spec under this name, or a live lease.
            ResourceExhausted: the job does not fit the service's memory limit; the details hold the numbers.
            Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied: as their names say.
        """
        operator = Operator() if operator is None else operator
        request = _open_request(
            name, tensors, stride, operator, if_exists, window_dtype, wire_dtype, take_over=take_over
        )
        _set_holder(request, window_holder, shard_count, shard_index, shared_lease_id)
        layout = Layout({key: describe(key, array) for key, array in tensors.items()})
        _set_encoding(request, layout, encoding, wire_dtype)
        timeout = (
            self._timeout_seconds
            if timeout_seconds is None
            else check_finite("timeout_seconds", timeout_seconds)
        )
        if lease_id and not take_over:
            request.take_over = self._is_lease_alive(name, lease_id, timeout)
        ring = None
        if shared_memory and window_holder == "server":
            ring = SharedRing.for_job(self._connection.target, layout.nbytes)
        response, ring = self._opened(request, ring, timeout)
        job = Job(self._connection, response, request, layout, operator, self._timeout_seconds, ring)
        job.keep_weights = bool(keep_weights)
        with self._lock:
            self._jobs.add(job)
            self._start_heartbeat()
        return job

    def jobs(self) -> list[JobStatus]:
        """All jobs of this identity, by name, without their blocks."""
        statuses: list[JobStatus] = []
        page_token = ""
        while True:
            response = self._connection.call(
                lambda channel: job_pb2_grpc.JobServiceStub(channel).ListJobs,
                job_pb2.ListJobsRequest(page_token=page_token),
                self._timeout_seconds,
            )
            statuses.extend(status_from_message(job) for job in response.jobs)
            page_token = response.next_page_token
            if not page_token:
                return statuses

    def job_status(self, name: str, first_block: int = 0, max_blocks: int = 256) -> JobStatus:
        """The state of one job of this identity, with the operators of its window; needs no lease.

        Args:
            name: the job's name.
            first_block: number of the first block to tell of, from 0.
            max_blocks: blocks to tell of at most, 1 to 4096 (more are cut to that): a node partition has a hundred
                thousand. `JobStatus.summary` speaks of all.

        Raises:
            NotFound: no such job.
            ArgumentValueError, ArgumentTypeError: a name that no job can have, a number out of range.
        """
        response = self._connection.call(
            lambda channel: job_pb2_grpc.JobServiceStub(channel).GetJob,
            job_pb2.GetJobRequest(
                name=check_job_name(name),
                first_block=check_whole("first_block", first_block, 0, 2**32 - 1),
                max_blocks=check_whole("max_blocks", max_blocks, 1, 2**32 - 1),
            ),
            self._timeout_seconds,
        )
        return status_from_message(response.job)

    def close(self) -> None:
        """Releases the leases of jobs still open (they stay for the next writer) and closes the connection.

        Does nothing the second time; never raises for a service that is gone. In a process forked from the one
        that opened them, the leases are left alone.
        """
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            jobs = list(self._jobs) if self._process_id == os.getpid() else []
        deadline = time.monotonic() + _CLOSE_TIMEOUT_SECONDS  # for all of them together
        for job in jobs:
            if not job.closed:
                with contextlib.suppress(KoopcastError):
                    job.close(keep=True, timeout_seconds=max(0.0, deadline - time.monotonic()))
        self._connection.close()
        if self._heartbeat is not None and self._heartbeat is not threading.current_thread():
            self._heartbeat.join(timeout=_CLOSE_TIMEOUT_SECONDS)
        if self._embedded is not None:
            self._embedded.release()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _opened(
        self, request: job_pb2.OpenJobRequest, ring: SharedRing | None, timeout_seconds: float
    ) -> tuple[job_pb2.OpenJobResponse, SharedRing | None]:
        """The opened job, and the ring where the service has it open too. Nobody finds the ring from then on."""
        try:
            if ring is not None:
                request.shared_memory.CopyFrom(ring.offer)
            response: job_pb2.OpenJobResponse = self._connection.call(
                lambda channel: job_pb2_grpc.JobServiceStub(channel).OpenJob, request, timeout_seconds
            )
        finally:
            if ring is not None:
                ring.unlink()
        return response, ring if response.shared_memory else None

    def _is_lease_alive(self, name: str, lease_id: str, timeout_seconds: float) -> bool:
        """Whether this is the lease that holds the job now."""
        request = job_pb2.RenewLeaseRequest(name=name, lease_id=lease_id)
        try:
            self._connection.call(
                lambda channel: job_pb2_grpc.JobServiceStub(channel).RenewLease, request, timeout_seconds
            )
        except (LeaseLost, NotFound):
            return False
        return True

    def _start_heartbeat(self) -> None:
        if self._heartbeat is None or not self._heartbeat.is_alive():
            self._heartbeat = threading.Thread(target=self._beat, name="koopcast-heartbeat", daemon=True)
            self._heartbeat.start()

    def _beat(self) -> None:
        """Renews leases of jobs that were silent for a third of their lease."""
        while not self._closing.wait(self._beat_seconds()):
            with self._lock:
                jobs = list(self._jobs)
            for job in jobs:
                if not job.closed and time.monotonic() - job.last_contact > job.lease_seconds / 3:
                    with contextlib.suppress(KoopcastError):  # the job's next call will say what is wrong
                        job.renew()

    def _beat_seconds(self) -> float:
        with self._lock:
            return min((job.lease_seconds for job in self._jobs), default=60.0) / 6


def _set_holder(
    request: job_pb2.OpenJobRequest, holder: str, shard_count: int, shard_index: int, shared_lease_id: str
) -> None:
    """Say in the request who holds the window; not in how many parts, where it is one."""
    if holder not in _HOLDERS:
        raise ArgumentValueError(
            f"window_holder must be one of {', '.join(_HOLDERS)}, not {holder!r}", field="window_holder"
        )
    check_whole("shard_count", shard_count, 1, MAX_SHARDS)
    if shard_count > 1 and holder == "server":
        raise ArgumentValueError('shard_count above 1 is for window_holder="trainer"', field="shard_count")
    check_whole("shard_index", shard_index, 0, shard_count - 1)
    if not isinstance(shared_lease_id, str):
        raise ArgumentTypeError("shared_lease_id must be a string: Job.lease_id", field="shared_lease_id")
    if holder == "trainer":
        request.spec.window_holder = job_pb2.WINDOW_HOLDER_TRAINER
        request.spec.shard_count = shard_count if shard_count > 1 else 0
        request.shard_index, request.shared_lease_id = shard_index, shared_lease_id


def _set_encoding(
    request: job_pb2.OpenJobRequest, layout: Layout, encoding: Encoding, wire_dtype: str | None
) -> None:
    """Say in the request how snapshots travel; nothing, where they do as they are."""
    if check_encoding(layout, encoding, wire_dtype) is None:
        return
    if request.spec.window_holder == job_pb2.WINDOW_HOLDER_TRAINER:
        raise ArgumentValueError(
            f'encoding={encoding!r} is for snapshots that travel: with window_holder="trainer" none does',
            field="encoding",
        )
    request.spec.encoding = ENCODING_NUMBERS[encoding]


def _open_request(  # noqa: PLR0913  # the same settings
    name: str,
    tensors: Mapping[str, Any],
    stride: int,
    operator: Operator,
    if_exists: str,
    window_dtype: str | None,
    wire_dtype: str | None,
    *,
    take_over: bool,
) -> job_pb2.OpenJobRequest:
    check_job_name(name)
    if not isinstance(tensors, Mapping) or not tensors:
        raise ArgumentTypeError("tensors must be a mapping with at least one named array", field="tensors")
    specs = {key: describe(key, array) for key, array in tensors.items()}
    if isinstance(stride, bool) or not isinstance(stride, int):
        raise ArgumentTypeError(f"stride must be a whole number of steps, not {stride!r}", field="stride")
    if not 1 <= stride <= 2**31:
        raise ArgumentValueError(f"stride must lie in 1..2**31 steps, not {stride}", field="stride")
    if not isinstance(operator, Operator):
        raise ArgumentTypeError(f"operator must be a koopcast.Operator, not {operator!r}", field="operator")
    if if_exists not in _IF_EXISTS:
        raise ArgumentValueError(
            f"if_exists must be one of {', '.join(_IF_EXISTS)}, not {if_exists!r}", field="if_exists"
        )
    for field, dtype in (("window_dtype", window_dtype), ("wire_dtype", wire_dtype)):
        if dtype is not None and dtype not in ELEMENT_BYTES:
            raise ArgumentValueError(
                f"{field} must be one of {', '.join(ELEMENT_BYTES)}, not {dtype!r}", field=field
            )
    spec = job_pb2.JobSpec(
        tensors=tensors_to_messages(specs),
        stride=stride,
        operator=operator_to_message(operator),
        window_dtype=DTYPE_NUMBERS[window_dtype] if window_dtype else None,
        wire_dtype=DTYPE_NUMBERS[wire_dtype] if wire_dtype else None,
    )
    return job_pb2.OpenJobRequest(
        name=name,
        spec=spec,
        if_exists=_IF_EXISTS[if_exists],
        take_over=take_over,
        protocol_version=PROTOCOL_VERSION,
        client_version=f"koopcast/{VERSION}",
    )
