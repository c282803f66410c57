"""Service processes that start in a moment: forked from one that has imported everything already.

A test that kills a service at every message needs dozens of them, and importing torch takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

from services import REPOSITORY, RunningService

_READY = b"!"
_NOBODY = -1


class Nursery:
    """A process that forks services on demand."""

    def __init__(self) -> None:
        """Start it; returns when its imports are done."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=REPOSITORY
            )
        self._socket = ours
        if ours.recv(1) != _READY:
            raise RuntimeError("the process that services are forked from did not start")

    def service(self, *arguments: str, environment: Mapping[str, str] | None = None) -> ForkedService:
        """A service, not started yet."""
        return ForkedService(self, *arguments, environment=environment)

    def fork(self, command: list[str], environment: Mapping[str, str]) -> ForkedProcess:
        """Run the `koopcast` command with these arguments in a new process."""
        out, err = os.pipe(), os.pipe()
        request = json.dumps({"command": command, "environment": dict(environment)}).encode()
        socket.send_fds(self._socket, [request], [out[1], err[1]])
        os.close(out[1])
        os.close(err[1])
        return ForkedProcess(int(self._socket.recv(64)), os.fdopen(out[0]), os.fdopen(err[0]))

    def close(self) -> None:
        """End it; services that still run are not touched."""
        self._socket.close()
        self._process.kill()
        self._process.wait(timeout=30)


class ForkedProcess:
    """As much of `subprocess.Popen` as `RunningService` uses, of a process that is no child of ours."""

    def __init__(self, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        """Watch this process."""
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs; of one that has ended it is not known how."""
        if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None:
            if not select.select([self._handle], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("koopcast", timeout or 0.0)
            self._ended()
        return _NOBODY

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _ended(self) -> None:
        self.returncode = _NOBODY
        os.close(self._handle)


class ForkedService(RunningService):
    """A `koopcast serve` process out of a nursery."""

    def __init__(
        self, nursery: Nursery, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Not started yet."""
        super().__init__(*arguments, environment=environment)
        self._nursery = nursery

    def _launch(self, options: list[str], environment: Mapping[str, str]) -> Any:
        return self._nursery.fork(["serve", *options], environment)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery for the length of the block."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def _main(requests: socket.socket) -> None:
    from koopcast_server.__main__ import app

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for the services
    requests.send(_READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            request = json.loads(data)
            os.environ.update(request["environment"])
            for standard, descriptor in zip((1, 2), descriptors, strict=True):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            app(request["command"])  # ends in SystemExit
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
