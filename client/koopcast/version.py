"""Versions: of the package, and of the protocol it speaks."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

__all__ = ["PROTOCOL_VERSION", "VERSION"]

PROTOCOL_VERSION: Final = 1
"""Newest protocol version this package speaks; exchanged when a job opens."""

try:
    VERSION: Final = version("koopcast")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+unknown"  # type: ignore[misc]  # the fall-back of a Final
