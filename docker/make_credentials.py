"""Makes what compose.yaml needs once: a certificate authority, the service's certificate, and a token.

    make_credentials.py SERVICE_FOLDER TRAINER_FOLDER [NAME ...]

The service's folder gets its certificate, its key and the token file; the trainer's gets the authority's certificate
and its token, and nothing that would let it be the service. The authority's key is not kept: to renew, remove both
folders (`docker compose down --volumes`) and start again. Needs the `openssl` command.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

DAYS = "365"
IDENTITY = "trainer"


def openssl(*arguments: str | Path) -> None:
    """Runs openssl; what it says is shown if it fails."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"credentials: openssl {arguments[0]} failed: {done.stderr.strip()}")


def alternative_name(name: str) -> str:
    """A name as it stands in a certificate."""
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def make_certificates(folder: Path, names: list[str]) -> None:
    """Writes ca.pem, server.pem and server.key into a folder."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    extensions = folder / "extensions"
    extensions.write_text(
        f"subjectAltName={','.join(map(alternative_name, names))}\n"
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
    )
    openssl(
        *("req", "-x509", *curve, "-days", DAYS, "-subj", "/CN=koopcast authority"),
        *(
            "-addext",
            "basicConstraints=critical,CA:TRUE,pathlen:0",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
    )
    openssl(
        *("req", *curve, "-subj", f"/CN={names[0]}"),
        *("-keyout", folder / "server.key", "-out", folder / "server.csr"),
    )
    openssl(
        *("x509", "-req", "-days", DAYS, "-extfile", extensions, "-in", folder / "server.csr"),
        *("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial"),
        *("-out", folder / "server.pem"),
    )


def main(arguments: list[str]) -> int:
    """Makes them, unless they are there."""
    if len(arguments) < 2:
        sys.exit("credentials: give the service's folder and the trainer's folder")
    service, trainer = (Path(argument) for argument in arguments[:2])
    names = arguments[2:] or ["koopcast", "localhost", "127.0.0.1"]
    last = trainer / "token"  # written last: where it stands, all of it does
    if last.exists():
        print("credentials: there already")
        return 0
    os.umask(0o077)
    service.mkdir(parents=True, exist_ok=True)
    trainer.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_certificates(folder, names)
        for name in ("server.pem", "server.key"):
            (service / name).write_bytes((folder / name).read_bytes())
        (service / "tokens").write_text(f"{IDENTITY}:{token}\n")
        (trainer / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
        last.write_text(f"{token}\n")
    print(f"credentials: made, for {', '.join(names)}; valid {DAYS} days")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
