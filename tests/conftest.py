"""Fixtures for all tests: one real service process a module, and a client of it."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

import koopcast
from services import RunningService, running_service


def pytest_configure() -> None:
    """Settings that processes inherit which tests start.

    One thread a computation, before anything imports torch: the tests' matrices are small, and threads of OpenMP that
    share a busy core wait for each other. And Ctrl-C is heard: a shell that starts pytest in the background has it ignored.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A `koopcast serve` process with its default settings."""
    with running_service("--memory-limit", "1GiB", "--http", "off") as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[koopcast.Client]:
    """A client of the module's service."""
    with koopcast.connect(service.target) as connected:
        yield connected


@pytest.fixture
def job_name() -> str:
    """A name that no other test uses."""
    return f"job-{uuid.uuid4().hex[:12]}"
