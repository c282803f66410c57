"""The sending side of koopcast and of everything it is measured beside: one connection each, warm."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import wrappers_pb2

import koopcast
from koopcast.v1 import prediction_pb2, prediction_pb2_grpc
from transfer import peers

__all__ = [
    "FLIGHT_MISSING",
    "TRANSPORTS",
    "Contender",
    "Flight",
    "Koopcast",
    "Plain",
    "RawSocket",
    "Transport",
    "flight_is_installed",
    "peer",
]

Transport = Literal["tcp", "tls", "unix"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("tcp", "tls", "unix")
FLIGHT_MISSING: Final = "not installed (`pip install pyarrow`)"
_STRIDE: Final = 10
Floats = npt.NDArray[np.float32]


class Contender(Protocol):
    """One way to move an array to another process and back.

    Attributes:
        name: for the tables.
        receiver: id of the process at the other end; 0: not known.
    """

    name: str
    receiver: int

    def send(self, array: Floats) -> None:
        """Moves `array` there; returns when the other side has said that it has it."""

    def fetch(self, out: Floats) -> None:
        """Gets as many bytes as `out` has, into `out` or into arrays of the contender's own."""

    def close(self) -> None:
        """Ends the connection."""


@contextlib.contextmanager
def peer(kind: str, nbytes: int, directory: Path) -> Iterator[dict[str, str]]:
    """A receiving process (`peers`); gives its addresses by transport."""
    process = subprocess.Popen(
        [sys.executable, str(Path(peers.__file__)), kind, str(nbytes), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        try:
            yield {**json.loads(process.stdout.readline()), "process": str(process.pid)}
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()


class RawSocket:
    """``sendall`` there, ``recv_into`` back; no checksum, no message."""

    def __init__(self, transport: Transport, address: str, directory: Path) -> None:
        """Connect."""
        self.name = "raw socket"
        self.receiver = 0
        if transport == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(address)
            return
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport == "tls":
            context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
            self._socket = context.wrap_socket(self._socket, server_hostname="127.0.0.1")

    def send(self, array: Floats) -> None:
        """Moves `array` there."""
        self._socket.sendall(peers.request_of(peers.SEND, array.nbytes))
        self._socket.sendall(array.data.cast("B"))
        if self._socket.recv(1) != b"k":
            raise ConnectionError("the peer did not take the array")

    def fetch(self, out: Floats) -> None:
        """Fills `out`."""
        self._socket.sendall(peers.request_of(peers.FETCH, out.nbytes))
        if not peers.read_exactly(self._socket, out.data.cast("B")):
            raise ConnectionError("the peer ended early")

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()


class Plain:
    """A stream of generated messages of 1 MiB in a bytes field, to and from a grpc.aio server; no checksum."""

    def __init__(self, transport: Transport, address: str, directory: Path) -> None:
        """Open the channel."""
        self.name = "plain protobuf-bytes stream"
        self.receiver = 0
        if transport == "tls":
            credentials = grpc.ssl_channel_credentials((directory / "ca.pem").read_bytes())
            self._channel = grpc.secure_channel(address, credentials, options=peers.GRPC_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, options=peers.GRPC_OPTIONS)
        self._send = self._channel.stream_unary(
            f"/{peers.PLAIN}/Send",
            wrappers_pb2.BytesValue.SerializeToString,
            wrappers_pb2.UInt64Value.FromString,
        )
        self._fetch = self._channel.unary_stream(
            f"/{peers.PLAIN}/Fetch",
            wrappers_pb2.UInt64Value.SerializeToString,
            wrappers_pb2.BytesValue.FromString,
        )

    def send(self, array: Floats) -> None:
        """Moves `array` there."""
        data = array.view(np.uint8)
        messages = (
            wrappers_pb2.BytesValue(value=data[start : start + peers.CHUNK].tobytes())
            for start in range(0, len(data), peers.CHUNK)
        )
        if self._send(messages).value != len(data):
            raise ConnectionError("the peer did not take the array")

    def fetch(self, out: Floats) -> None:
        """Fills `out`."""
        data, position = out.view(np.uint8), 0
        for message in self._fetch(wrappers_pb2.UInt64Value(value=len(data))):
            some = message.value
            data[position : position + len(some)] = np.frombuffer(some, np.uint8)
            position += len(some)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def flight_is_installed() -> bool:
    """Whether there is a pyarrow with Flight."""
    return importlib.util.find_spec("pyarrow") is not None


class Flight:
    """PyArrow Flight, ``do_put`` and ``do_get``, from and into memory that is there; no checksum."""

    def __init__(self, transport: Transport, address: str, directory: Path) -> None:
        """Connect."""
        self.name = "PyArrow Flight"
        self.receiver = 0
        self._arrow: Any = importlib.import_module("pyarrow")
        self._flight: Any = importlib.import_module("pyarrow.flight")
        secured = {"tls_root_certs": (directory / "ca.pem").read_bytes()} if transport == "tls" else {}
        self._client = self._flight.FlightClient(address, **secured)
        self._schema = self._arrow.schema([("data", self._arrow.uint8())])

    def send(self, array: Floats) -> None:
        """Moves `array` there."""
        arrow, batch = self._arrow, peers.FLIGHT_BATCH
        values = arrow.Array.from_buffers(arrow.uint8(), array.nbytes, [None, arrow.py_buffer(array)])
        descriptor = self._flight.FlightDescriptor.for_path("snapshot")
        writer, metadata = self._client.do_put(descriptor, self._schema)
        for start in range(0, len(values), batch):
            writer.write_batch(arrow.record_batch([values.slice(start, batch)], schema=self._schema))
        writer.done_writing()
        if metadata.read() is None:
            raise ConnectionError("the peer did not take the array")
        writer.close()

    def fetch(self, out: Floats) -> None:
        """Fills `out`."""
        data, position = out.view(np.uint8), 0
        for chunk in self._client.do_get(self._flight.Ticket(str(out.nbytes).encode())):
            some = chunk.data.column(0).to_numpy()
            data[position : position + len(some)] = some
            position += len(some)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class Koopcast:
    """``Job.push`` and ``Job.predict_ahead`` of the public client, against `koopcast serve`. Checksums on.

    Attributes:
        job: the job.
    """

    def __init__(
        self,
        target: str,
        elements: int,
        *,
        window: int = 3,
        ca: Path | None = None,
        keeping: bool = False,
        sharing: bool = True,
    ) -> None:
        """Open a job of one float32 tensor.

        Args:
            target: of the service.
            elements: in the tensor.
            window: snapshots held.
            ca: for TLS.
            keeping: the client keeps a copy of the last snapshot, for `Prediction.weights`, as it does unless told
                otherwise; the hook tells it.
            sharing: snapshots go through shared memory where it can be had, as they do unless it is told otherwise.
        """
        self.name = "koopcast" + ", keeping weights" * keeping + ", through the socket" * (not sharing)
        self.receiver = 0
        self._client = koopcast.connect(target, ca=ca, timeout_seconds=120.0)
        self.job = self._client.open_job(
            f"transfer-{os.getpid()}-{time.monotonic_ns()}",
            {"w": koopcast.TensorSpec("float32", (elements,))},
            stride=_STRIDE,
            operator=koopcast.Operator(window=window, rank=1, always_move=True),
            **_known(keep_weights=keeping, shared_memory=sharing),
        )
        self._step = 0

    @classmethod
    def streaming(cls, target: str, elements: int, *, ca: Path | None = None) -> Koopcast:
        """One that pushes short snapshots, too, as streams: what a push cost before they went in one message."""
        made = cls(target, elements, ca=ca)
        made.name = "koopcast, as a stream"
        made.job._takes_short = False
        return made

    def send(self, array: Floats) -> None:
        """Pushes a snapshot; returns when it is accepted."""
        self._step += _STRIDE
        if self.job.push(self._step, {"w": array}).outcome != "accepted":
            raise ConnectionError("the snapshot was not accepted")

    def settle(self) -> None:
        """Returns when the service has nothing left to do for the job: what it does later is not on the next clock."""
        self.job.status(max_blocks=1)

    def fetch(self, out: Floats) -> None:
        """Gets a displacement as long as `out`, into an array of the client's own."""
        displacement = self.job.predict_ahead(_STRIDE).displacement["w"]
        if displacement.nbytes != out.nbytes:
            raise ConnectionError("the answer has another size")

    def first_bytes(self) -> float:
        """Seconds from asking to the first bytes of an answer: the solution and the combination. Reads no further."""
        request = prediction_pb2.PredictAheadRequest(
            job=self.job.name, lease_id=self.job._lease_id, horizons=[_STRIDE]
        )
        stub = prediction_pb2_grpc.PredictionServiceStub(self._client._connection.channel())
        started = time.perf_counter()
        answers = stub.PredictAhead(request, timeout=120.0)
        try:
            next(answer for answer in answers if answer.WhichOneof("message") == "chunk")
            return time.perf_counter() - started
        finally:
            answers.cancel()

    def close(self) -> None:
        """Frees the job, and ends the connection."""
        self.job.close()
        self._client.close()


def _known(**options: bool) -> Mapping[str, Any]:
    """Those that this version has: others are measured with the same benchmark."""
    known = inspect.signature(koopcast.Client.open_job).parameters
    return {name: value for name, value in options.items() if name in known}
