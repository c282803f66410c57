"""Health checks while 20 jobs of a million parameters push and predict from two processes.

    python tests/bench/concurrency.py [--rounds 20]

Starts the service, and beside it a gRPC server that does nothing but answer health checks; loads the service from
two processes; asks both for their health all the while, in turn, and prints the quantiles of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "support"))

from services import running_service  # noqa: E402  # found through the line above

IDLE_SERVER = """
import sys, time
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


def check_seconds(stub: health_pb2_grpc.HealthStub) -> float:
    """Duration of one health check."""
    started = time.perf_counter()
    response: health_pb2.HealthCheckResponse = stub.Check(  # type: ignore[attr-defined]  # the stubs leave the methods out
        health_pb2.HealthCheckRequest(), timeout=10
    )
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise RuntimeError("not serving")
    return time.perf_counter() - started


def quantiles(seconds: list[float]) -> str:
    """p50, p99 and maximum in milliseconds."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return f"p50 {1e3 * p50:7.1f}   p99 {1e3 * p99:7.1f}   max {1e3 * max(seconds):7.1f} ms   ({len(seconds)} calls)"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    idle = subprocess.Popen(
        [sys.executable, "-c", IDLE_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with running_service("--memory-limit", "8GiB") as service, idle:
        assert idle.stdout is not None
        idle_target = f"127.0.0.1:{idle.stdout.readline().strip()}"
        loads = [
            subprocess.Popen(
                [
                    "nice",
                    sys.executable,
                    str(TESTS / "bench" / "load.py"),
                    service.target,
                    "--prefix",
                    f"load{number}",
                    "--rounds",
                    str(options.rounds),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        checks: dict[str, list[float]] = {"service": [], "idle": []}
        with grpc.insecure_channel(service.target) as busy, grpc.insecure_channel(idle_target) as quiet:
            stubs = {"service": health_pb2_grpc.HealthStub(busy), "idle": health_pb2_grpc.HealthStub(quiet)}
            while any(load.poll() is None for load in loads):
                for name, stub in stubs.items():
                    checks[name].append(check_seconds(stub))
                time.sleep(0.01)
        reports = [json.loads(load.communicate()[0]) for load in loads]
        assert idle.stdin is not None
        idle.stdin.close()
    for name in ("push", "predict"):
        print(f"{name:16} {quantiles([value for report in reports for value in report['seconds'][name]])}")
    errors = [value for report in reports for value in report["seconds"]["error"]]
    print(f"{'prediction error':16} max {max(errors):.1e} of the distance moved")
    for name in ("service", "idle"):
        print(f"{'health, ' + name:16} {quantiles(checks[name])}")
    failures = [failure for report in reports for failure in report["failures"]]
    print("\n".join(failures) or "no errors")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
