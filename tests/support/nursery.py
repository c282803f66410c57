"""Processes that start in a moment: forked from one that has imported everything already, and nothing else.

A test that kills a service at every message needs dozens of them, and importing torch takes seconds. What is forked has
no threads and no gRPC yet, so that it goes on, and ends, as a process that was started by itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

from services import REPOSITORY, RunningService

_READY = b"!"


class Nursery:
    """A process that forks others on demand."""

    def __init__(self) -> None:
        """Start it; returns when its imports are done."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=REPOSITORY
            )
        self._socket = ours
        self._lock = threading.Lock()
        if ours.recv(1) != _READY:
            raise RuntimeError("the process that others are forked from did not start")

    def service(self, *arguments: str, environment: Mapping[str, str] | None = None) -> ForkedService:
        """A service, not started yet."""
        return ForkedService(self, *arguments, environment=environment)

    def script(self, code: str, *arguments: str) -> ForkedProcess:
        """A process that runs this code, with ``sys.argv[1:]`` as given."""
        return self.fork({"code": code, "arguments": ["-c", *arguments], "environment": {}})

    def fork(self, task: Mapping[str, Any]) -> ForkedProcess:
        """A process with a task that `_perform` knows."""
        out, err = os.pipe(), os.pipe()
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(task).encode()], [out[1], err[1]])
            pid = int(self._socket.recv(64))
        os.close(out[1])
        os.close(err[1])
        return ForkedProcess(self, pid, os.fdopen(out[0]), os.fdopen(err[0]))

    def status_of(self, pid: int) -> int:
        """Exit status of a process that has ended, as `subprocess.Popen.returncode`."""
        with self._lock:
            self._socket.send(json.dumps({"status of": pid}).encode())
            return int(self._socket.recv(64))

    def close(self) -> None:
        """End it; processes that still run are not touched."""
        self._socket.close()
        self._process.kill()
        self._process.wait(timeout=30)


class ForkedProcess:
    """As much of `subprocess.Popen` as tests use, of a process that is no child of ours."""

    def __init__(self, nursery: Nursery, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        """Watch this process."""
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._nursery = nursery
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status."""
        with self._lock:
            if self.returncode is None:
                handle = os.pidfd_open(self.pid)
                try:
                    if not select.select([handle], [], [], timeout)[0]:
                        raise subprocess.TimeoutExpired("forked", timeout or 0.0)
                finally:
                    os.close(handle)
                self.returncode = self._nursery.status_of(self.pid)
            return self.returncode

    def finish(self, timeout: float) -> tuple[int, str, str]:
        """Wait for its end; its exit status, and all it wrote (a pipe holds what short scripts write)."""
        try:
            status = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        with self.stdout, self.stderr:
            return status, self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class ForkedService(RunningService):
    """A `koopcast serve` process out of a nursery."""

    def __init__(
        self, nursery: Nursery, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Not started yet."""
        super().__init__(*arguments, environment=environment)
        self._nursery = nursery

    def _launch(self, options: list[str], environment: Mapping[str, str]) -> Any:
        return self._nursery.fork({"service": ["serve", *options], "environment": dict(environment)})


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery for the length of the block."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def _serve_requests(requests: socket.socket) -> Mapping[str, Any]:
    """Forks until the other side is gone; returns, in each forked process, its task."""
    requests.send(_READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not data:
            os._exit(0)
        task = json.loads(data)
        if "status of" in task:
            _, status = os.waitpid(task["status of"], 0)
            requests.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            requests.close()
            for standard, descriptor in zip((1, 2), descriptors, strict=True):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            return dict(task)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())


def _perform(task: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.environ.update(task["environment"])
    if "service" in task:
        from koopcast_server.__main__ import app

        app(task["service"])  # ends in SystemExit
    sys.argv[:] = task["arguments"]
    exec(compile(task["code"], "<script>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for name in ("torch._dynamo", "koopcast.hook", "koopcast_server.__main__", "trainers"):
        importlib.import_module(name)  # torch._dynamo: the first optimizer loads it
    gc.freeze()  # collections at the ends of processes need not look at all that torch has

    _perform(_serve_requests(socket.socket(fileno=int(sys.argv[1]))))
