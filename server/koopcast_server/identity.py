"""Who is calling: bearer tokens, each of one identity, compared in constant time."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from koopcast.errors import Unauthenticated

__all__ = ["ANONYMOUS", "Identities", "TokenFileError"]

ANONYMOUS: Final = "anonymous"
"""Identity of every caller where no tokens are configured."""


class TokenFileError(ValueError):
    """The token file, or the tokens of the environment, cannot be used."""


class Identities:
    """The identities that may call, by token.

    Raises:
        TokenFileError: a line that is not ``identity:token``, a short or repeated token, no line at all.
    """

    def __init__(self, lines: str | None) -> None:
        """Read ``identity:token`` lines; None: no tokens, everybody is ANONYMOUS."""
        self._by_token = _parse(lines) if lines is not None else None

    @classmethod
    def from_sources(cls, token_file: Path | None, tokens: str | None) -> Identities:
        """From a file, or else from text (the environment), or else none."""
        if token_file is None:
            return cls(tokens)
        try:
            return cls(token_file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TokenFileError(f"cannot read the token file {token_file}: {error}") from error

    @property
    def required(self) -> bool:
        """Whether callers must show a token."""
        return self._by_token is not None

    def of_header(self, authorization: str | None) -> str:
        """The identity of an ``authorization`` header: Bearer, or Basic with the token as password.

        Raises:
            Unauthenticated: no token, or a wrong one.
        """
        if self._by_token is None:
            return ANONYMOUS
        if not authorization:
            raise Unauthenticated(
                "this service needs a token: koopcast.connect(..., token=...) or KOOPCAST_TOKEN",
                reason="NO_TOKEN",
            )
        given = _token_of(authorization).encode()
        found = ""
        for token, identity in self._by_token.items():  # every token is compared: time tells nothing
            if hmac.compare_digest(token.encode(), given):
                found = identity
        if not found:
            raise Unauthenticated("the token is not one this service knows", reason="WRONG_TOKEN")
        return found


def _token_of(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, or not UTF-8
            return ""
    return ""


def _parse(lines: str) -> Mapping[str, str]:
    by_token: dict[str, str] = {}
    for number, line in enumerate(lines.replace(";", "\n").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        identity, separator, token = text.partition(":")
        if not separator or not identity.strip() or len(token.strip()) < 16:
            raise TokenFileError(
                f"tokens, line {number}: each line is identity:token, the token at least 16 characters long"
            )
        if token.strip() in by_token:
            raise TokenFileError(f"tokens, line {number}: this token stands on another line too")
        by_token[token.strip()] = identity.strip()
    if not by_token:
        raise TokenFileError("tokens: there is no identity:token line")
    return by_token
