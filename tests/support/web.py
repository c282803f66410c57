"""Requests to the HTTP application without a network."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from koopcast.operator import Operator
from koopcast.wire import TensorSpec
from koopcast_server import http_api
from koopcast_server.http_models import Problem
from koopcast_server.identity import Identities
from koopcast_server.job import JobSpec
from koopcast_server.jobs import Jobs, OpenMode
from koopcast_server.metrics import Metrics

SPEC = JobSpec((("w", TensorSpec("float32", (4,))),), 1, Operator(), "float32", "float32")


def open_job(jobs: Jobs, name: str, owner: str = "anonymous") -> None:
    asyncio.run(jobs.open(name, owner, SPEC, OpenMode("error", take_over=False), "test"))


def get(jobs: Jobs, path: str, tokens: str | None = None, **options: Any) -> httpx.Response:
    """One request to the application, without a network."""
    app = http_api.create_app(jobs, Metrics(jobs), Identities(tokens))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(options.pop("method", "GET"), path, **options)

    return asyncio.run(send())


def problem_of(response: httpx.Response) -> Problem:
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert found.status == response.status_code
    return found
