"""Fixtures for tests of faults: services that start in a moment, and an eye on what tests leave behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faulty import nothing_left
from nursery import ForkedService, Nursery, nursery
from trainers import single_thread

__all__ = ["single_thread"]


@pytest.fixture(scope="session")
def cradle() -> Iterator[Nursery]:
    """Where services are forked from."""
    with nursery() as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(cradle: Nursery) -> Iterator[None]:
    """No test leaves a thread or a process behind."""
    with nothing_left():
        yield


@pytest.fixture
def own_service(_clean: None, cradle: Nursery) -> Iterator[ForkedService]:
    """A service for one test, to be maltreated."""
    service = cradle.service("--memory-limit", "1GiB", "--http", "off")
    service.start()
    try:
        yield service
    finally:
        service.kill()
