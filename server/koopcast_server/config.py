"""The service's settings: one object, from the command line, the environment (``KOOPCAST_...``) or code."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["AUTO_MEMORY_LIMIT", "Settings", "parse_bytes"]

AUTO_MEMORY_LIMIT: Final = 0
"""As a memory limit: half of the device's free memory when the service starts."""

_UNITS: Final = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNITS_DECIMAL: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_AMOUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: object) -> int:
    """A number of bytes from ``"8GiB"``, ``"500MB"``, ``"auto"`` or a plain number.

    Raises:
        ValueError: anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if str(text).lower() == "auto":
        return AUTO_MEMORY_LIMIT
    match = _AMOUNT.fullmatch(str(text))
    unit = (_UNITS | _UNITS_DECIMAL).get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f'memory must be given like "8GiB", "500MB", a number of bytes, or "auto", not {text!r}'
        )
    return int(float(match[1]) * unit)


def _default_workers() -> int:
    return min(4, os.cpu_count() or 1)


class Settings(BaseSettings):
    """What a service is started with.

    Attributes:
        listen: gRPC address, ``host:port`` (port 0: any free one) or ``unix:/path``.
        http: HTTP address, ``host:port``, or None for no HTTP.
        device: ``auto`` (CUDA where there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:N``. A device that was
            asked for and is missing is an error.
        tls_cert, tls_key: PEM files of the server's certificate chain and key, for gRPC and HTTP.
        token_file: file with a line ``identity:token`` for each user; `tokens` holds the same text.
        insecure: allow listening beyond loopback without TLS and tokens.
        memory_limit_bytes: device memory for all jobs together; 0: half of what is free at the start.
        job_ttl_seconds: jobs without a writer expire after this time.
        lease_seconds: how long a writer's lease lives without a call.
        drain_seconds: how long open calls may take after SIGTERM.
        stall_seconds: how long a reader may keep an answer waiting, or an upload may stay silent.
        workers: threads that copy, check and compute; by default one a core, at most 4.
        threads: threads of a single computation on the CPU; by default the cores divided among the workers; 0 leaves
            torch's setting alone.
        log_level: debug, info, warning or error.
        log_format: ``console`` for people, ``json`` for machines.
    """

    model_config = SettingsConfigDict(env_prefix="KOOPCAST_", frozen=True, extra="ignore")

    listen: str = "127.0.0.1:50051"
    http: str | None = "127.0.0.1:8080"
    device: str = "auto"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    tokens: SecretStr | None = None
    insecure: bool = False
    memory_limit_bytes: Annotated[int, BeforeValidator(parse_bytes)] = AUTO_MEMORY_LIMIT
    job_ttl_seconds: float = Field(default=3600.0, gt=0)
    lease_seconds: float = Field(default=60.0, gt=0)
    drain_seconds: float = Field(default=10.0, ge=0)
    stall_seconds: float = Field(default=60.0, gt=0)
    workers: int = Field(default_factory=_default_workers, ge=1, le=256)
    threads: int | None = Field(default=None, ge=0, le=1024)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @property
    def computation_threads(self) -> int:
        """Threads of a single computation, the default filled in."""
        return max(1, (os.cpu_count() or 1) // self.workers) if self.threads is None else self.threads
