"""The receiving side of everything koopcast is measured beside, each in a process of its own.

    python tests/bench/transfer/peers.py KIND BYTES DIRECTORY

Prints one JSON object with its addresses, serves until its standard input ends. Every kind takes arrays into, and sends
arrays from, memory that is there already.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import wrappers_pb2

__all__ = ["CHUNK", "FETCH", "FLIGHT_BATCH", "GRPC_OPTIONS", "PLAIN", "SEND", "read_exactly", "request_of"]

CHUNK: Final = 1 << 20
"""Bytes of a message of the plain protobuf stream, as koopcast's."""
FLIGHT_BATCH: Final = 1 << 20
"""Bytes of a record batch of Arrow Flight: of 1, 2, 4, 16 and 64 MiB the fastest on the machine this was written on."""
SEND: Final = b"S"
FETCH: Final = b"F"
PLAIN: Final = "plain.Transfer"
GRPC_OPTIONS: Final = (("grpc.max_receive_message_length", 8 << 20), ("grpc.so_reuseport", 0))
Buffer = npt.NDArray[np.uint8]


def request_of(kind: bytes, nbytes: int) -> bytes:
    """What a raw socket's client says first."""
    return struct.pack("<cQ", kind, nbytes)


def read_exactly(connection: socket.socket, into: memoryview) -> bool:
    """Fill `into`; False where the other side ended first."""
    position = 0
    while position < len(into):
        count = connection.recv_into(into[position:])
        if not count:
            return False
        position += count
    return True


# ------------------------------------------------------------------------------------------------- raw sockets


def serve_sockets(store: Buffer, directory: Path) -> dict[str, str]:
    """TCP, TLS and Unix socket."""
    tcp, tls = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(path := f"{directory}/raw-{os.getpid()}.sock")
    local.listen()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    for listener, wrap in ((tcp, None), (tls, context), (local, None)):
        threading.Thread(target=_accept, args=(listener, wrap, store), daemon=True).start()
    return {
        "tcp": f"127.0.0.1:{tcp.getsockname()[1]}",
        "tls": f"127.0.0.1:{tls.getsockname()[1]}",
        "unix": path,
    }


def _accept(listener: socket.socket, context: ssl.SSLContext | None, store: Buffer) -> None:
    while True:
        connection, _ = listener.accept()
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        threading.Thread(target=_converse, args=(connection, store), daemon=True).start()


def _converse(connection: socket.socket, store: Buffer) -> None:
    request, memory = bytearray(9), store.data
    with connection:
        while read_exactly(connection, memoryview(request)):
            kind, nbytes = struct.unpack("<cQ", request)
            if kind == FETCH:
                connection.sendall(memory[:nbytes])
            elif read_exactly(connection, memory[:nbytes]):
                connection.sendall(b"k")


# ----------------------------------------------------------------------------- a plain stream of protobuf bytes


async def serve_plain(store: Buffer, directory: Path) -> tuple[dict[str, str], grpc.aio.Server]:
    """A grpc.aio server of streams of generated messages with a bytes field; it lives as long as it is referred to."""
    server = grpc.aio.server(options=GRPC_OPTIONS)

    async def send(
        requests: AsyncIterator[wrappers_pb2.BytesValue], context: Any
    ) -> wrappers_pb2.UInt64Value:
        position = 0
        async for message in requests:
            data = message.value
            store[position : position + len(data)] = np.frombuffer(data, np.uint8)
            position += len(data)
        return wrappers_pb2.UInt64Value(value=position)

    async def fetch(
        request: wrappers_pb2.UInt64Value, context: Any
    ) -> AsyncIterator[wrappers_pb2.BytesValue]:
        for start in range(0, request.value, CHUNK):
            yield wrappers_pb2.BytesValue(value=store[start : min(start + CHUNK, request.value)].tobytes())

    methods: dict[str, Any] = {
        "Send": grpc.stream_unary_rpc_method_handler(
            send, wrappers_pb2.BytesValue.FromString, wrappers_pb2.UInt64Value.SerializeToString
        ),
        "Fetch": grpc.unary_stream_rpc_method_handler(
            fetch, wrappers_pb2.UInt64Value.FromString, wrappers_pb2.BytesValue.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PLAIN, methods),))
    pair = ((directory / "server.key").read_bytes(), (directory / "server.pem").read_bytes())
    tcp = server.add_insecure_port("127.0.0.1:0")
    tls = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.add_insecure_port(local := f"unix:{directory}/plain-{os.getpid()}.sock")
    await server.start()
    return {"tcp": f"127.0.0.1:{tcp}", "tls": f"127.0.0.1:{tls}", "unix": local}, server


# --------------------------------------------------------------------------------------------------- Arrow Flight


def serve_flight(store: Buffer, directory: Path) -> dict[str, str]:
    """PyArrow Flight: one server for each transport; they share their memory."""
    arrow: Any = importlib.import_module("pyarrow")
    flight: Any = importlib.import_module("pyarrow.flight")
    schema = arrow.schema([("data", arrow.uint8())])

    class Server(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow ships no types
        def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            position = 0
            for chunk in reader:
                data = chunk.data.column(0).to_numpy()
                store[position : position + len(data)] = data
                position += len(data)
            writer.write(b"k")

        def do_get(self, context: Any, ticket: Any) -> Any:
            nbytes = int(ticket.ticket)
            values = arrow.Array.from_buffers(arrow.uint8(), nbytes, [None, arrow.py_buffer(store[:nbytes])])
            batches = (
                arrow.record_batch([values.slice(start, FLIGHT_BATCH)], schema=schema)
                for start in range(0, nbytes, FLIGHT_BATCH)
            )
            return flight.GeneratorStream(schema, batches)

    pair = ((directory / "server.pem").read_bytes(), (directory / "server.key").read_bytes())
    tcp = Server("grpc://127.0.0.1:0")
    tls = Server("grpc+tls://127.0.0.1:0", tls_certificates=[pair])
    local = Server(path := f"grpc+unix://{directory}/flight-{os.getpid()}.sock")
    for server in (tcp, tls, local):
        threading.Thread(target=server.serve, daemon=True).start()
    return {
        "tcp": f"grpc://127.0.0.1:{tcp.port}",
        "tls": f"grpc+tls://127.0.0.1:{tls.port}",
        "unix": path,
    }


def main() -> None:
    """Serve until the standard input ends."""
    kind, nbytes, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    store = np.random.default_rng(0).integers(0, 255, max(nbytes, 1), np.uint8)  # resident, and not all alike
    if kind == "plain":
        asyncio.run(_plain(store, directory))
        return
    serve = {"socket": serve_sockets, "flight": serve_flight}[kind]
    print(json.dumps(serve(store, directory)), flush=True)
    sys.stdin.read()


async def _plain(store: Buffer, directory: Path) -> None:
    addresses, server = await serve_plain(store, directory)
    print(json.dumps(addresses), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    main()
