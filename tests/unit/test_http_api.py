"""The HTTP API over its application: readiness, undefined numbers, errors, identities, metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest
import torch

from koopcast.errors import KoopcastError, LeaseLost, ResourceExhausted
from koopcast.operator import Operator
from koopcast.prediction import Block, Mode, Summary
from koopcast.status import HistoryPoint
from koopcast_server import http_api
from koopcast_server.engine import Engine
from koopcast_server.http_guard import OPEN_PATHS, problem
from koopcast_server.http_models import Health, JobDetail, JobList
from koopcast_server.http_operator_models import BlockModel, OperatorModel
from koopcast_server.identity import Identities
from koopcast_server.job import Job
from koopcast_server.jobs import Jobs
from koopcast_server.metrics import Metrics
from web import get, open_job, problem_of

ADA, BOB = "ada-token-0123456789", "bob-token-0123456789"


def test_readiness_follows_the_device(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(jobs, "/readyz").status_code == 200

    async def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(jobs.engine, "check", broken)
    assert problem_of(get(jobs, "/readyz")).reason == "DEVICE_FAILED"
    health = get(jobs, "/healthz")
    assert health.status_code == 503
    assert Health.model_validate_json(health.content).reason == "DEVICE_FAILED"
    assert get(jobs, "/livez").status_code == 200


def test_readiness_gives_up_on_an_engine_that_is_stuck(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck() -> None:
        await asyncio.sleep(60.0)

    monkeypatch.setattr(jobs.engine, "check", stuck)
    monkeypatch.setattr(http_api, "_CHECK_SECONDS", 0.05)
    assert problem_of(get(jobs, "/readyz")).reason == "ENGINE_BUSY"


def test_probes_that_come_together_share_one_check(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0

    async def counted() -> None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(0.05)

    monkeypatch.setattr(jobs.engine, "check", counted)
    app = http_api.create_app(jobs, Metrics(jobs), Identities(None))

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await asyncio.gather(*(client.get("/readyz") for _ in range(20)))

    assert {response.status_code for response in asyncio.run(burst())} == {200}
    assert checks == 1


def test_draining_is_not_ready(jobs: Jobs) -> None:
    jobs.draining = True
    assert problem_of(get(jobs, "/readyz")).reason == "DRAINING"
    assert get(jobs, "/healthz").json()["reason"] == "DRAINING"
    assert get(jobs, "/v1/jobs").status_code == 200


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_null(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    mode = Mode(complex(value, value), value, value, value)
    block = Block(
        *("network", 4, 1, value, value, value, value, 0, True, False, (complex(value, value),)),
        *(value, value, "none", value, (mode,)),
    )
    open_job(jobs, "a")
    monkeypatch.setattr(type(next(jobs.all())), "reports", _answer((block,)))
    response = get(jobs, "/v1/jobs/a")
    found = json.loads(response.content, parse_constant=pytest.fail)["blocks"][0]
    assert JobDetail.model_validate_json(response.content).blocks == [BlockModel.of(block)]
    undefined = ["spectral_radius", "residual", "backtest_error", "backtest_error_linear", "predicted_error"]
    undefined += ["ridge", "jump_scale"]
    assert {name: found[name] for name in undefined} == dict.fromkeys(undefined)
    assert found["eigenvalues"] == [{"real": None, "imaginary": None}]
    assert found["modes"] == [
        {"eigenvalue": {"real": None, "imaginary": None}}
        | dict.fromkeys(("energy", "time_constant_steps", "residual"))
    ]


def _answer(blocks: tuple[Block, ...]) -> Callable[..., Any]:
    async def reports(
        _job: Job, _engine: Engine, first: int, count: int
    ) -> tuple[tuple[Block, ...], Summary]:
        return blocks[first : first + count], Summary(len(blocks), 0, 0, 0.0, 1.0, 1.0, 1.0)

    return reports


def test_many_blocks_come_in_parts(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = tuple(Block(f"t{n}", 1, 0, 0.0, 0.0, 1.0, 1.0, 1, False, False, ()) for n in range(600))
    open_job(jobs, "a")
    monkeypatch.setattr(type(next(jobs.all())), "reports", _answer(blocks))
    first = get(jobs, "/v1/jobs/a").json()
    assert first["blocks_total"] == 600
    assert [block["name"] for block in first["blocks"]] == [f"t{n}" for n in range(256)]
    rest = get(jobs, "/v1/jobs/a?first_block=590&max_blocks=1000").json()["blocks"]
    assert [block["name"] for block in rest] == [f"t{n}" for n in range(590, 600)]


def test_a_job_tells_of_all_blocks_and_of_earlier_answers(jobs: Jobs) -> None:
    open_job(jobs, "a")
    summary = Summary(100_000, 7, 2, 1.5, math.nan, 0.75, 0.25, 0.5)
    history = (
        HistoryPoint(30, 1.5, math.nan, 0.75, 100.0, math.nan, False),
        HistoryPoint(40, 1.25, 0.5, 0.75, 50.0, 0.125, True),
    )
    page = tuple(Block(f"n[{n}]", 1, 0, 0.0, 0.0, 1.0, 1.0, 1, False, False, ()) for n in range(2))
    status = replace(
        next(jobs.all()).describe(),
        blocks=page,
        summary=summary,
        history=history,
        trusted_horizon_steps=120.5,
    )
    found = json.loads(JobDetail.with_blocks(status).model_dump_json(), parse_constant=pytest.fail)
    assert (found["blocks_total"], len(found["blocks"])) == (100_000, 2)
    assert found["summary"] == asdict(summary) | {"backtest_error": None}
    assert found["history"] == [
        asdict(history[0]) | {"backtest_error": None, "predicted_error": None},
        asdict(history[1]),
    ]
    assert found["trusted_horizon_steps"] == 120.5


OPERATORS = [
    Operator(),
    Operator.preset("dogra-redman"),
    Operator(partition="quasi_node", quasi_node_inputs=10, delays=2, forgetting=0.9, debias="backtest"),
    Operator(rank="gavish-donoho", ridge="backtest", max_jump=4.0, mask_tolerance=0.5),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_every_operator_setting_is_told(operator: Operator) -> None:
    assert OperatorModel.of(operator).model_dump() == asdict(operator)


def test_a_job_without_snapshots_has_nulls(jobs: Jobs) -> None:
    open_job(jobs, "a")
    found = JobDetail.model_validate_json(get(jobs, "/v1/jobs/a").content)
    assert (found.step, found.pushed, found.last_prediction_seconds) == (None, None, None)
    assert found.blocks == []
    assert found.blocks_total == 0
    assert found.summary is None
    assert found.history == []


def test_pages(jobs: Jobs) -> None:
    for name in ("d", "a", "c", "b", "e"):
        open_job(jobs, name)
    names, token, answers = [], "", 0
    while token or not answers:
        path = f"/v1/jobs?page_size=2&page_token={token}"
        page = JobList.model_validate_json(get(jobs, path).content)
        names += [job.name for job in page.jobs]
        token, answers = page.next_page_token, answers + 1
    assert names == ["a", "b", "c", "d", "e"]
    assert answers == 3
    assert len(get(jobs, "/v1/jobs?page_size=100000").json()["jobs"]) == 5


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/v1/jobs/nobody", 404, "JOB_NOT_FOUND"),
        ("/v1/jobs/a%20b", 400, "INVALID_ARGUMENT"),
        ("/v1/jobs/..%2f..%2fetc", 404, "NOT_FOUND"),
        ("/v1/jobs/" + "x" * 129, 400, "INVALID_ARGUMENT"),
        ("/v1/jobs?page_size=-1", 400, "INVALID_ARGUMENT"),
        ("/v1/jobs?page_size=many", 400, "INVALID_ARGUMENT"),
        ("/v1/jobs/a?max_blocks=100000", 400, "INVALID_ARGUMENT"),
        ("/nothing", 404, "NOT_FOUND"),
        ("/static/../http_api.py", 404, "NOT_FOUND"),
        ("/static/%2e%2e/http_api.py", 404, "NOT_FOUND"),
        ("/docs", 404, "NOT_FOUND"),
        ("/redoc", 404, "NOT_FOUND"),
    ],
)
def test_errors_are_problems(jobs: Jobs, path: str, status: int, reason: str) -> None:
    found = problem_of(get(jobs, path))
    assert (found.status, found.reason) == (status, reason)


def test_other_methods_are_refused(jobs: Jobs) -> None:
    response = get(jobs, "/v1/jobs", method="POST")
    assert problem_of(response).reason == "METHOD_NOT_ALLOWED"
    assert response.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("error", "status"),
    [(LeaseLost("taken"), 409), (ResourceExhausted("full"), 429), (KoopcastError("who knows"), 500)],
)
def test_status_follows_from_the_code(error: KoopcastError, status: int) -> None:
    assert problem(error).status_code == status


def test_a_fault_tells_nothing_of_the_inside(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(jobs, "get", faulty)
    response = get(jobs, "/v1/jobs/a")
    assert problem_of(response).reason == "INTERNAL"
    assert "secret" not in response.text


CLOSED_PATHS = [
    "/",
    "/metrics",
    "/version",
    "/openapi.json",
    "/v1/jobs",
    "/v1/jobs/a",
    "/static/app.js",
    "/none",
]
TOKENS = f"ada:{ADA}\nbob:{BOB}"


@pytest.mark.parametrize("path", CLOSED_PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer wrong",
        "Bearer",
        "Basic !!!",
        "Basic " + base64.b64encode(b"ada").decode(),
        "Basic \xe4",
        ADA,
    ],
)
def test_without_the_token_nothing_is_told(jobs: Jobs, path: str, authorization: str | None) -> None:
    headers = [] if authorization is None else [("authorization", authorization.encode("latin-1"))]
    response = get(jobs, path, TOKENS, headers=headers)
    assert problem_of(response).status == 401
    assert response.headers["www-authenticate"].startswith('Basic realm="koopcast"')
    assert "content-security-policy" in response.headers


@pytest.mark.parametrize("path", CLOSED_PATHS[:-1])
@pytest.mark.parametrize("auth", [("", ADA), ("anybody", ADA), None])
def test_the_token_opens_as_bearer_and_as_password(
    jobs: Jobs, path: str, auth: tuple[str, str] | None
) -> None:
    open_job(jobs, "a", "ada")
    options = {"auth": auth} if auth else {"headers": {"authorization": f"Bearer {ADA}"}}
    assert get(jobs, path, TOKENS, **options).status_code == 200


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_health_is_open_and_names_no_job(jobs: Jobs, path: str) -> None:
    open_job(jobs, "very-secret-name", "ada")
    response = get(jobs, path, TOKENS)
    assert response.status_code == 200
    assert "very-secret-name" not in response.text
    assert "ada" not in response.text


def test_callers_see_only_their_own_jobs(jobs: Jobs) -> None:
    open_job(jobs, "hers", "ada")
    open_job(jobs, "his", "bob")
    headers = {"authorization": f"Bearer {BOB}"}
    listed = get(jobs, "/v1/jobs", TOKENS, headers=headers).json()["jobs"]
    assert [job["name"] for job in listed] == ["his"]
    refused = problem_of(get(jobs, "/v1/jobs/hers", TOKENS, headers=headers))
    assert (refused.status, refused.reason) == (403, "NOT_THE_OWNER")
    assert "hers" not in get(jobs, "/metrics", TOKENS, headers=headers).text


def test_metrics_speak_both_formats(jobs: Jobs) -> None:
    plain = get(jobs, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert "koopcast_jobs 0.0" in plain.text
    both = get(jobs, "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert both.text.endswith("# EOF\n")


def test_version(jobs: Jobs) -> None:
    found = get(jobs, "/version").json()
    assert found["torch"] == torch.__version__
    assert found["protocol_version"] >= 1
