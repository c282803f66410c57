"""A service, a proxy before it, and a client that knows only the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

import koopcast
from proxy import Proxy, proxied
from services import RunningService


@pytest.fixture
def proxy(service: RunningService) -> Iterator[Proxy]:
    with proxied(service.target) as made:
        yield made


@pytest.fixture
def far(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[koopcast.Client]:
    """A client that reaches the module's service through the proxy, and shares no memory with it."""
    with koopcast.connect(proxy.target) as connected:
        monkeypatch.setattr(connected, "open_job", partial(connected.open_job, shared_memory=False))
        yield connected
