"""The secure default: nothing but loopback without TLS and token, tokens checked first, tenants apart."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import koopcast
from credentials import TOKENS, Credentials, make_credentials
from services import RunningService, running_service

WEIGHTS = {"w": np.arange(6.0)}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("credentials"))


@pytest.fixture(scope="module")
def secured(credentials: Credentials) -> Iterator[RunningService]:
    """A service with TLS and tokens, listening on every address: no --insecure needed."""
    options = [
        "--listen",
        "0.0.0.0:0",
        "--http",
        "0.0.0.0:0",
        *credentials.tls_options,
        *credentials.token_options,
    ]
    with running_service(*options) as service:
        service.target = service.target.replace("0.0.0.0", "127.0.0.1")
        service.http_url = service.http_url.replace("0.0.0.0", "127.0.0.1")
        yield service


def client_of(service: RunningService, credentials: Credentials, identity: str) -> koopcast.Client:
    return koopcast.connect(service.target, ca=credentials.ca, token=TOKENS[identity])


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "koopcast_server", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "0.0.0.0:0", "--http", "off"],
        ["--listen", "[::]:0", "--http", "off"],
        ["--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"],
    ],
    ids=" ".join,
)
def test_beyond_loopback_needs_tls_and_token(options: list[str]) -> None:
    result = serve(*options)
    assert result.returncode == 2
    assert (
        "can be reached from other machines: give --tls-cert and --tls-key and --token-file" in result.stderr
    )


def test_tls_without_token_is_not_enough(credentials: Credentials) -> None:
    result = serve("--listen", "0.0.0.0:0", "--http", "off", *credentials.tls_options)
    assert result.returncode == 2
    assert "give --token-file, or --insecure" in result.stderr


def test_insecure_is_explicit() -> None:
    with (
        running_service("--listen", "0.0.0.0:0", "--http", "0.0.0.0:0", "--insecure") as service,
        koopcast.connect(service.target.replace("0.0.0.0", "127.0.0.1")) as client,
    ):
        assert client.jobs() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice", "each line is identity:token"),
        ("alice:short", "at least 16 characters"),
        ("a:0123456789abcdef\nb:0123456789abcdef", "stands on another line"),
        ("# nothing\n", "no identity:token line"),
    ],
)
def test_bad_token_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    result = serve("--http", "off", "--listen", "127.0.0.1:0", "--token-file", str(path))
    assert result.returncode == 2
    assert words in result.stderr
    assert "0123456789abcdef" not in result.stderr


def test_missing_tls_files_are_named(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    result = serve("--listen", "127.0.0.1:0", "--http", "off", "--tls-cert", absent, "--tls-key", absent)
    assert result.returncode == 2
    assert "absent.pem" in result.stderr
    result = serve("--listen", "127.0.0.1:0", "--http", "off", "--tls-cert", absent)
    assert "needs both --tls-cert and --tls-key" in result.stderr


def test_a_job_over_tls_with_a_token(secured: RunningService, credentials: Credentials) -> None:
    with (
        client_of(secured, credentials, "alice") as client,
        client.open_job("mine", WEIGHTS, stride=1) as job,
    ):
        job.push(0, WEIGHTS)
        assert job.status().owner == "alice"


@pytest.mark.parametrize(("token", "reason"), [(None, "NO_TOKEN"), ("a-wrong-token-333333", "WRONG_TOKEN")])
def test_no_token_and_a_wrong_token(
    secured: RunningService,
    credentials: Credentials,
    token: str | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KOOPCAST_TOKEN", raising=False)
    with client_of(secured, credentials, "alice") as alice, alice.open_job("kept", WEIGHTS, stride=1) as job:
        job.push(0, WEIGHTS)
        with koopcast.connect(secured.target, ca=credentials.ca, token=token) as client:
            with pytest.raises(koopcast.Unauthenticated) as caught:
                client.jobs()
            assert caught.value.reason == reason
            with pytest.raises(koopcast.Unauthenticated):
                client.open_job("intruder", WEIGHTS, stride=1)
        assert job.push(1, WEIGHTS).snapshots_held == 2


def test_the_token_may_come_from_the_environment(
    secured: RunningService, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOOPCAST_TOKEN", TOKENS["bob"])
    with koopcast.connect(secured.target, ca=credentials.ca) as client:
        assert client.jobs() == []


def test_tenants_do_not_see_each_other(secured: RunningService, credentials: Credentials) -> None:
    with client_of(secured, credentials, "alice") as alice, client_of(secured, credentials, "bob") as bob:
        job = alice.open_job("private", WEIGHTS, stride=1)
        assert bob.jobs() == []
        with pytest.raises(koopcast.PermissionDenied, match="another identity"):
            bob.job_status("private")
        with pytest.raises(koopcast.PermissionDenied):
            bob.open_job("private", WEIGHTS, stride=1, take_over=True)
        assert job.push(0, WEIGHTS).outcome == "accepted"
        job.close()


def test_a_plain_client_cannot_talk_to_a_tls_service(secured: RunningService) -> None:
    with (
        koopcast.connect(secured.target, token=TOKENS["alice"]) as client,
        pytest.raises(koopcast.Unavailable),
    ):
        client.jobs()


def test_a_client_that_does_not_know_the_authority_refuses(secured: RunningService, tmp_path: Path) -> None:
    stranger = make_credentials(tmp_path)
    with (
        koopcast.connect(secured.target, ca=stranger.ca, token=TOKENS["alice"]) as client,
        pytest.raises(koopcast.Unavailable),
    ):
        client.jobs()


def test_a_plain_connection_to_another_host_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match=r"insecure=True"):
        koopcast.connect("gpu-box:50051")
    koopcast.connect("gpu-box:50051", insecure=True).close()
    with pytest.raises(koopcast.ArgumentValueError, match="cannot read the CA certificate"):
        koopcast.connect("gpu-box:50051", ca=tmp_path / "absent.pem")


def test_http_is_as_closed_as_grpc(secured: RunningService, credentials: Credentials) -> None:
    context = ssl.create_default_context(cafile=credentials.ca)
    with httpx.Client(base_url=secured.http_url, verify=context) as http:
        for path in ("/livez", "/readyz", "/healthz"):
            assert http.get(path).status_code == 200
        for path in ("/", "/metrics", "/version", "/openapi.json", "/v1/jobs", "/v1/jobs/x"):
            assert http.get(path).status_code == 401, path
            answered = http.get(path, headers={"Authorization": f"Bearer {TOKENS['bob']}"})
            assert answered.status_code == (404 if path.endswith("/x") else 200), path


def test_tokens_are_not_in_the_process_list_or_the_output(secured: RunningService) -> None:
    command = Path(f"/proc/{secured.process.pid}/cmdline")
    if command.exists():
        assert TOKENS["alice"].encode() not in command.read_bytes()
    assert TOKENS["alice"] not in "".join(secured.errors)
