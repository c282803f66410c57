"""Exits 0 if the service in this container is ready, else 1. The HTTP port speaks TLS where the service has it."""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request

PORT = sys.argv[1] if len(sys.argv) > 1 else "8080"


def main() -> int:
    """Asks /readyz on loopback, with TLS and then without."""
    # It asks itself, over loopback, whether it works; who it is, is for clients to check.
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    said = ""
    for scheme in ("https", "http"):
        try:
            with urllib.request.urlopen(
                f"{scheme}://127.0.0.1:{PORT}/readyz", timeout=2, context=trusting
            ) as answer:
                return 0 if answer.status == 200 else 1
        except urllib.error.HTTPError as error:
            print(f"not ready: {error.code} {error.read(500).decode(errors='replace')}")
            return 1
        except OSError as error:
            said = str(error)
    print(f"not reachable: {said}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
