"""The base install, made as a user makes it: the wheel, in an environment of its own, with its dependencies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_INSTALLED = (
    "import importlib.util as u; print([m for m in ('torch', 'fastapi', 'typer') if u.find_spec(m)])"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """Standard output and error of a command, which must exit with `status`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=240
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built with the pinned build requirements of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("koopcast-*.whl")
    return built


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the base install, of the versions in the lock."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--constraint", REPOSITORY / "requirements.lock", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return python.parent


def test_the_wheel_holds_what_the_source_holds(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {
        path.relative_to(room).as_posix()
        for room in (REPOSITORY / "client", REPOSITORY / "server")
        for path in room.glob("*/**/*")  # not the guide that lies beside the package
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert inside == source
    assert {"koopcast/py.typed", "koopcast_server/py.typed", "koopcast/v1/job_pb2.pyi"} <= inside


def test_the_base_install_is_light(light: Path) -> None:
    assert run(light / "python", "-c", NOT_INSTALLED, cwd=light).strip() == "[]"
    names = run(light / "python", "-m", "pip", "list", "--format", "freeze", cwd=light).split()
    installed = {re.split("[=@ ]", name)[0].lower() for name in names}
    assert installed - {"pip", "setuptools"} == {
        "koopcast",
        "grpcio",
        "protobuf",
        "numpy",
        "crc32c",
        "typing_extensions",
    }


def test_the_base_install_imports_and_names_its_version(light: Path) -> None:
    assert run(
        light / "python", "-W", "error", "-c", "import koopcast; print(koopcast.__version__)", cwd=light
    )
    assert run(light / "koopcast", "version", cwd=light).startswith("koopcast ")


@pytest.mark.parametrize("command", ["serve", "demo", "jobs"])
def test_what_needs_the_server_names_the_extra_and_exits_2(light: Path, command: str) -> None:
    said = run(light / "koopcast", command, cwd=light, status=2)
    assert "koopcast[server]" in said
    assert "Traceback" not in said


def test_attach_and_the_embedded_service_name_their_extras(light: Path) -> None:
    code = (
        "import koopcast\n"
        "for call in (lambda: koopcast.connect(None), lambda: koopcast.attach):\n"
        "    try:\n"
        "        call()\n"
        "    except (koopcast.KoopcastError, ImportError) as error:\n"
        "        print(error)\n"
    )
    said = run(light / "python", "-c", code, cwd=light)
    assert "koopcast[server]" in said
    assert "needs PyTorch" in said
