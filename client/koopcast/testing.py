"""For tests of code that uses koopcast: a real service inside the test's process.

    with koopcast.testing.running_service() as target:
        client = koopcast.connect(target)

It is the embedded service: the same gRPC server on a private Unix socket, with nothing mocked. Needs
``koopcast[server]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from koopcast.embedded import acquire_embedded

__all__ = ["running_service"]


@contextmanager
def running_service() -> Iterator[str]:
    """Address of a service that runs for the length of the block, shared with other embedded users.

    Raises:
        MissingExtra: the server is not installed.
    """
    embedded = acquire_embedded()
    try:
        yield embedded.target
    finally:
        embedded.release()
