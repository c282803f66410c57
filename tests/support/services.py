"""Real service processes for tests: started by the `koopcast` command, reached over real sockets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0


class RunningService:
    """A `koopcast serve` process. Restarting keeps its addresses."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._arguments = arguments
        self._environment = environment or {}
        self._addresses = ("127.0.0.1:0", "127.0.0.1:0")
        self.process: subprocess.Popen[str]
        self.target = ""
        self.http_url = ""
        self.errors: list[str] = []

    def start(self) -> None:
        listen, http = self._addresses
        options = list(self._arguments)
        if "--listen" not in options:
            options += ["--listen", listen]
        if "--http" not in options:
            options += ["--http", http]
        self.process = self._launch(options, self._environment)
        self._collector = threading.Thread(target=self._collect_errors, daemon=True)
        self._collector.start()
        self._read_addresses()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close_pipes()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=30)
        self._close_pipes()

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kills it if it runs, and starts it on the same addresses."""
        if self.process.poll() is None:
            self.kill()
        self._addresses = (self.target, self.http_url.partition("://")[2])
        self.start()

    def _launch(self, options: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "koopcast_server", "serve", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **environment},
        )

    def _close_pipes(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._collector.join(timeout=5)

    def _collect_errors(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        with stream:
            self.errors.extend(stream)

    def _read_addresses(self) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        for line in self.process.stdout:
            if match := re.match(r"gRPC\s+(\S+)", line):
                self.target = match[1]
            if match := re.match(r"HTTP\s+(\S+)", line):
                self.http_url = match[1]
                return
            if time.monotonic() > deadline:
                break
        self.process.wait(timeout=10)
        raise RuntimeError(f"koopcast serve did not start: {''.join(self.errors)}")


@contextlib.contextmanager
def running_service(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningService]:
    """A service process for the length of the block."""
    service = RunningService(*arguments, environment=environment)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
