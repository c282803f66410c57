"""The service that a demo runs against, in a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from koopcast_server.demo.data import DemoError

__all__ = ["ServiceFailed", "demo_service"]

_PRINTED_LINES: Final = 3
"""What `koopcast serve` prints when it is ready."""


class ServiceFailed(DemoError):
    """The demo's service did not start."""


@contextlib.contextmanager
def demo_service() -> Iterator[tuple[str, str]]:
    """A service process on loopback, ended after the block: its gRPC address and the URL of its page.

    Raises:
        ServiceFailed: it did not start; the message has what it said.
    """
    command = [
        sys.executable,
        "-m",
        "koopcast_server",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(  # noqa: S603  # our own command
        [*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            printed = "".join(line for _, line in zip(range(_PRINTED_LINES), process.stdout, strict=False))
            grpc_address = re.search(r"^gRPC\s+(\S+)$", printed, re.MULTILINE)
            http_address = re.search(r"^HTTP\s+(\S+)$", printed, re.MULTILINE)
            if grpc_address is None or http_address is None:
                raise ServiceFailed(f"the demo's service did not start: {printed or 'see above'}")
            yield grpc_address[1], http_address[1]
        finally:
            process.terminate()
