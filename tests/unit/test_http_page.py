"""The page and the OpenAPI document: whole, and free of anything from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import koopcast_server
from koopcast_server.http_guard import OPEN_PATHS
from koopcast_server.jobs import Jobs
from web import get

STATIC = Path(koopcast_server.__file__).parent / "static"


def test_the_document_is_whole(jobs: Jobs) -> None:
    document = get(jobs, "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    schemas = document["components"]["schemas"]
    assert set(references) <= set(schemas)
    assert all(
        "description" in field for schema in schemas.values() for field in schema["properties"].values()
    )
    operations = {path: item["get"] for path, item in document["paths"].items()}
    expected = {"/livez", "/readyz", "/healthz", "/metrics", "/version", "/v1/jobs", "/v1/jobs/{job}"}
    assert set(operations) == expected
    assert {path for path, operation in operations.items() if "security" not in operation} == OPEN_PATHS
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    assert all("422" not in operation["responses"] for operation in operations.values())


def test_the_page_is_served_with_everything_it_needs(jobs: Jobs) -> None:
    page = get(jobs, "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.headers["x-content-type-options"] == "nosniff"
    scripts = {path.name: path.read_text("utf-8") for path in STATIC.glob("*.js")}
    needed = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text))
    needed |= {
        f"/static/{name}" for code in scripts.values() for name in re.findall(r'from "\./([^"]+)"', code)
    }
    assert needed == {f"/static/{path.name}" for path in STATIC.iterdir()} - {"/static/index.html"}
    assert {get(jobs, path).status_code for path in needed} == {200}
    used = {name for code in scripts.values() for name in re.findall(r'byId\("([\w-]+)"\)', code)}
    assert used <= set(re.findall(r'id="([\w-]+)"', page.text))


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_the_page_loads_nothing_from_elsewhere_and_builds_no_markup(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|[\"'(]//|@import|data:", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)", text)
