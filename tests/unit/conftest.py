"""Fixtures for unit tests of the service's rooms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from koopcast_server.engine import Engine
from koopcast_server.jobs import Jobs


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine on the CPU."""
    made = Engine("cpu", workers=1)
    yield made
    made.close()


@pytest.fixture
def jobs(engine: Engine) -> Jobs:
    """No jobs yet, a mebibyte for all of them."""
    return Jobs(engine, memory_limit_bytes=1 << 20, lease_seconds=60.0, job_ttl_seconds=3600.0)
