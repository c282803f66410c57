"""Generates the protobuf and gRPC stubs in client/koopcast/v1, with a pinned toolchain of its own.

    python proto/generate.py            writes them
    python proto/generate.py --check    exits 1 where the committed ones differ from what would be written

The toolchain is old on purpose: generated code runs on runtimes as new as, or newer than, its own, so the
stubs' version is the floor of the `grpcio` and `protobuf` dependencies (see pyproject.toml). It lives in
`.venv-proto`, apart from the project's environment, because it pins an older protobuf.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TOOLCHAIN = (
    "grpcio-tools==1.71.2",
    "grpcio==1.71.2",
    "protobuf==5.29.6",
    "mypy-protobuf==3.6.0",
    "types-protobuf==5.29.1.20250403",
    "setuptools==80.9.0",
)
PROTO_ROOT = Path(__file__).resolve().parent
PROJECT_ROOT = PROTO_ROOT.parent
PACKAGE = Path("koopcast/v1")
COMMITTED = PROJECT_ROOT / "client" / PACKAGE
TOOLCHAIN_ENVIRONMENT = PROJECT_ROOT / ".venv-proto"
PACKAGE_DOCSTRING = (
    '"""Generated protobuf and gRPC stubs of koopcast.v1. Written by proto/generate.py; do not edit."""\n'
)


def toolchain_python() -> Path:
    """Path of the toolchain's interpreter; the environment is made on first use and when the pins change."""
    python = TOOLCHAIN_ENVIRONMENT / "bin" / "python"
    stamp = TOOLCHAIN_ENVIRONMENT / "pins.txt"
    pins = "\n".join(TOOLCHAIN)
    if not stamp.exists() or stamp.read_text() != pins:
        print("generate: installing the pinned toolchain into .venv-proto", file=sys.stderr)
        venv.create(TOOLCHAIN_ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLCHAIN], check=True)
        stamp.write_text(pins)
    return python


def generate(destination: Path) -> None:
    """Writes all stubs below `destination`, as koopcast/v1/*.py and *.pyi."""
    python = toolchain_python()
    sources = sorted((PROTO_ROOT / PACKAGE).glob("*.proto"))
    subprocess.run(
        [
            python,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--plugin=protoc-gen-mypy_grpc={python.parent / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            f"--grpc_python_out={destination}",
            f"--mypy_grpc_out=quiet:{destination}",
            *map(str, sources),
        ],
        check=True,
    )
    package = destination / PACKAGE
    (package / "__init__.py").write_text(PACKAGE_DOCSTRING)
    services = {path.stem for path in sources if "\nservice " in path.read_text()}
    for path in sources:
        if path.stem not in services:  # no service in it: the gRPC files would be empty
            (package / f"{path.stem}_pb2_grpc.py").unlink()
            (package / f"{path.stem}_pb2_grpc.pyi").unlink(missing_ok=True)


def differences(fresh: Path) -> list[str]:
    """Names of files that differ between `fresh` and the committed package, or stand in only one of them."""
    names = {path.name for folder in (fresh, COMMITTED) for path in folder.glob("*.py*") if path.is_file()}
    _, mismatch, errors = filecmp.cmpfiles(fresh, COMMITTED, names, shallow=False)
    return sorted({*mismatch, *errors})


def main() -> int:
    """Writes the stubs, or checks them; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the koopcast.v1 stubs.")
    parser.add_argument("--check", action="store_true", help="only compare with the committed stubs")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / PACKAGE
        changed = differences(fresh)
        if check:
            for name in changed:
                print(
                    f"generate: client/{PACKAGE}/{name} is not what proto/ says; run python proto/generate.py"
                )
            return 1 if changed else 0
        COMMITTED.mkdir(parents=True, exist_ok=True)
        for name in changed:
            if (fresh / name).exists():
                (COMMITTED / name).write_bytes((fresh / name).read_bytes())
            else:
                (COMMITTED / name).unlink()
        print(f"generate: {len(changed)} file(s) written" if changed else "generate: up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
