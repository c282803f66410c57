"""Health checks, in turn, of the service under load and of an idle gRPC server beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["idle_server", "watch"]

_IDLE_SERVER = """
import sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
server = grpc.server(futures.ThreadPoolExecutor(4))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""
_PAUSE_SECONDS = 0.01


@contextlib.contextmanager
def idle_server() -> Iterator[str]:
    """A gRPC server in a process of its own that does nothing but answer health checks; its target."""
    process = subprocess.Popen(
        [sys.executable, "-c", _IDLE_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.stdin.close()


def watch(service: str, idle: str, loaded: Callable[[], bool]) -> dict[str, list[float]]:
    """Seconds of health checks of both, in turn, while `loaded`."""
    checks: dict[str, list[float]] = {"service": [], "idle server": []}
    with grpc.insecure_channel(service) as busy, grpc.insecure_channel(idle) as quiet:
        stubs = {
            "service": health_pb2_grpc.HealthStub(busy),
            "idle server": health_pb2_grpc.HealthStub(quiet),
        }
        for stub in stubs.values():
            _check_seconds(stub)  # connects
        while loaded():
            for name, stub in stubs.items():
                checks[name].append(_check_seconds(stub))
            time.sleep(_PAUSE_SECONDS)
    return checks


def _check_seconds(stub: health_pb2_grpc.HealthStub) -> float:
    started = time.perf_counter()
    response: health_pb2.HealthCheckResponse = stub.Check(  # type: ignore[attr-defined]  # the stubs leave the methods out
        health_pb2.HealthCheckRequest(), timeout=10
    )
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise RuntimeError("not serving")
    return time.perf_counter() - started
