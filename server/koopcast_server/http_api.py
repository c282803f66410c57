"""The HTTP API: health for orchestrators, metrics for Prometheus, jobs for people. It only reads."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.responses import FileResponse
from fastapi.security.http import HTTPBase
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import choose_encoder

from koopcast.errors import Unavailable
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast_server.http_guard import PROBLEM_RESPONSES, Guard, add_error_handlers, caller
from koopcast_server.http_models import Alive, Health, JobDetail, JobList, JobSummary, Ready, VersionInfo
from koopcast_server.identity import Identities
from koopcast_server.jobs import Jobs
from koopcast_server.metrics import Metrics

__all__ = ["create_app"]

_log = structlog.get_logger("koopcast")
_STATIC: Final = Path(__file__).parent / "static"
_MAX_PAGE: Final = 1000
_CHECK_SECONDS: Final = 5.0
_BLOCKS: Final = 256
"""Blocks told of unless asked otherwise: a node partition has a hundred thousand."""


class _Readiness:
    """Whether the service takes work. Probes that come together share one check of the device."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._check: asyncio.Task[None] | None = None

    async def refuse_unless_ready(self) -> None:
        """Raises Unavailable, with the reason, unless the service takes work."""
        self._jobs.refuse_when_draining()
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._jobs.engine.check(), name="koopcast-readiness")
        check = self._check
        await asyncio.wait({check}, timeout=_CHECK_SECONDS)
        if not check.done():
            message = f"the engine did not answer within {_CHECK_SECONDS:.0f} s"
            raise Unavailable(message, reason="ENGINE_BUSY")
        error = asyncio.CancelledError() if check.cancelled() else check.exception()
        if error is not None:
            _log.error("the device does not compute", error=repr(error))
            message = "the device does not compute; the service's log says why"
            raise Unavailable(message, reason="DEVICE_FAILED")


@dataclass(frozen=True)
class _Parts:
    """What the routes work with."""

    jobs: Jobs
    metrics: Metrics
    readiness: _Readiness


def _parts_of(request: Request) -> _Parts:
    parts: _Parts = request.app.state.parts
    return parts


_Served = Annotated[_Parts, Depends(_parts_of)]
_Caller = Annotated[str, Depends(caller)]

_open = APIRouter(tags=["health"])
_closed = APIRouter(
    # the guard has checked the token before; these tell OpenAPI how it is given
    dependencies=[
        Security(HTTPBase(scheme="bearer", scheme_name="bearer", auto_error=False)),
        Security(
            HTTPBase(
                scheme="basic",
                scheme_name="basic",
                description="The token is the password; the user name is ignored.",
                auto_error=False,
            )
        ),
    ]
)


def create_app(jobs: Jobs, metrics: Metrics, identities: Identities) -> FastAPI:
    """The HTTP application over these jobs.

    Args:
        jobs: what is shown; their engine is what readiness checks.
        metrics: what Prometheus scrapes.
        identities: who may ask. Where tokens are required, callers see only their own jobs, and only the
            health endpoints answer without one.
    """
    app = FastAPI(
        title="koopcast",
        version=VERSION,
        summary="Predicts where a network's weights are going, and jumps them there.",
        description="Read-only status of the service and its jobs. Measures that are undefined or not finite "
        "are null, because JSON has no NaN. Errors are `application/problem+json`.",
        docs_url=None,  # the documentation pages of FastAPI load scripts from elsewhere
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.parts = _Parts(jobs, metrics, _Readiness(jobs))
    app.include_router(_open)
    app.include_router(_closed)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_middleware(Guard, identities=identities)
    add_error_handlers(app)
    return app


@_open.get("/livez", summary="The process answers")
async def livez() -> Alive:
    """Answers as long as the event loop runs. Needs no token."""
    return Alive()


@_open.get("/readyz", summary="The service takes work", responses=PROBLEM_RESPONSES)
async def readyz(parts: _Served) -> Ready:
    """A worker answers, the device computes, and the service is not draining. Needs no token."""
    await parts.readiness.refuse_unless_ready()
    return Ready()


@_open.get(
    "/healthz",
    summary="The service at a glance",
    responses={503: {"model": Health, "description": "The service takes no work."}},
)
async def healthz(parts: _Served, response: Response) -> Health:
    """As `/readyz`, with the figures a person asks for first. Needs no token."""
    reason = None
    try:
        await parts.readiness.refuse_unless_ready()
    except Unavailable as error:
        reason = error.reason
        response.status_code = 503
    jobs = parts.jobs
    return Health(
        status="ready" if reason is None else "unavailable",
        reason=reason,
        version=VERSION,
        device=jobs.engine.describe(),
        jobs=len(jobs),
        memory_bytes=jobs.memory_bytes,
        memory_limit_bytes=jobs.memory_limit_bytes,
    )


@_closed.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **PROBLEM_RESPONSES},
    tags=["health"],
)
async def metrics_text(request: Request, parts: _Served) -> Response:
    """In Prometheus' text format, or OpenMetrics where the scraper asks for it."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(parts.metrics.registry), headers={"content-type": content_type})


@_closed.get("/version", summary="What runs here", responses=PROBLEM_RESPONSES, tags=["health"])
async def version_info(parts: _Served) -> VersionInfo:
    """Versions, and the device."""
    return VersionInfo(
        version=VERSION,
        protocol_version=PROTOCOL_VERSION,
        python=platform.python_version(),
        torch=version("torch"),
        device=parts.jobs.engine.describe(),
    )


@_closed.get("/v1/jobs", summary="The caller's jobs", responses=PROBLEM_RESPONSES, tags=["jobs"])
async def list_jobs(
    parts: _Served,
    identity: _Caller,
    page_size: Annotated[int, Query(ge=0, description="At most so many; 0 or above 1000: 1000.")] = 0,
    page_token: Annotated[str, Query(description="`next_page_token` of the page before.")] = "",
) -> JobList:
    """By name, without their blocks."""
    size = min(page_size or _MAX_PAGE, _MAX_PAGE)
    owned = (job for job in parts.jobs.all() if job.owner == identity and job.name > page_token)
    page = [JobSummary.of(job.describe()) for job in islice(owned, size)]
    more = next(owned, None) is not None
    return JobList(jobs=page, next_page_token=page[-1].name if more else "")


@_closed.get(
    "/v1/jobs/{job}",
    summary="One job",
    response_model=JobDetail,
    responses=PROBLEM_RESPONSES,
    tags=["jobs"],
)
async def get_job(
    job: str,
    parts: _Served,
    identity: _Caller,
    first_block: Annotated[int, Query(ge=0, description="Number of the first block to tell of.")] = 0,
    max_blocks: Annotated[int, Query(ge=0, le=_MAX_PAGE, description="Blocks to tell of at most.")] = _BLOCKS,
) -> Response:
    """The operators are those of the window as it is now, fitted with the job's settings."""
    found = parts.jobs.get(job, identity)
    blocks, summary = await found.reports(parts.jobs.engine, first_block, max_blocks)
    status = found.describe(blocks, summary)

    def encode() -> str:  # tens of milliseconds, which must not hold the event loop
        return JobDetail.with_blocks(status).model_dump_json()

    return Response(await asyncio.to_thread(encode), media_type="application/json")


@_closed.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page that shows the jobs."""
    return FileResponse(_STATIC / "index.html", media_type="text/html; charset=utf-8")
