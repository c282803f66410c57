"""A certificate authority, a server certificate for loopback, and tokens, for tests of the secured service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

TOKENS = {"alice": "a-token-for-alice-1", "bob": "a-token-for-bob-222"}


@dataclass(frozen=True)
class Credentials:
    """Files of a secured service."""

    ca: Path
    certificate: Path
    key: Path
    token_file: Path

    @property
    def tls_options(self) -> list[str]:
        """Options of `koopcast serve` for TLS."""
        return ["--tls-cert", str(self.certificate), "--tls-key", str(self.key)]

    @property
    def token_options(self) -> list[str]:
        """Options of `koopcast serve` for tokens."""
        return ["--token-file", str(self.token_file)]


def make_credentials(directory: Path) -> Credentials:
    """Writes all files into `directory`."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    made = Credentials(
        directory / "ca.pem", directory / "server.pem", directory / "server.key", directory / "tokens"
    )
    authority.cert_pem.write_to_path(made.ca)
    made.certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(made.key)
    lines = [f"{identity}:{token}" for identity, token in TOKENS.items()]
    made.token_file.write_text("# identity:token\n\n" + "\n".join(lines) + "\n")
    return made
