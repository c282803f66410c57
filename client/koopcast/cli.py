"""The `koopcast` command. What needs the server is handed to it, where it is installed."""

from __future__ import annotations

import sys

from koopcast.version import PROTOCOL_VERSION, VERSION

__all__ = ["main"]

_EXIT_USAGE = 2


def main() -> int:
    """Runs the command; on the base install only `koopcast version` works, anything else names the extra."""
    try:
        from koopcast_server import __main__ as server  # noqa: PLC0415  # absent from the base install
    except ImportError as error:
        return _light(error)
    server.main()
    return 0


def _light(error: ImportError) -> int:
    if sys.argv[1:] == ["version"]:
        sys.stdout.write(
            f"koopcast {VERSION} (protocol {PROTOCOL_VERSION}, Python {sys.version.split()[0]})\n"
        )
        return 0
    command = sys.argv[1] if len(sys.argv) > 1 else "koopcast"
    sys.stderr.write(
        f"koopcast: '{command}' needs the server, which is not installed ({error}).\n"
        "Install it with: pip install 'koopcast[server]'\n"
    )
    return _EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
