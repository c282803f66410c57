"""The arrows between the rooms, read off the imports; and what packaging promises.

All modules are found by globbing, so the rules hold for those that are still to come.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = {"koopcast": REPOSITORY / "client", "koopcast_server": REPOSITORY / "server"}

MAY_START_THE_SERVER = {"koopcast.embedded", "koopcast.cli", "koopcast.testing"}
"""Client modules that import the server, inside the function that starts it."""
CLIENT_TORCH = ("koopcast.hook", "koopcast.window", "koopcast.testing")
SERVER_TORCH = (
    "koopcast_server.koopman",
    "koopcast_server.answering",
    "koopcast_server.held_window",
    "koopcast_server.gram_store",
    "koopcast_server.window_shape",
    "koopcast_server.solving",
    "koopcast_server.engine",
    "koopcast_server.demo",
)
"""Where torch is at home. `answering`, `held_window`, `gram_store`, `window_shape` and `solving` are the engine's parts
for one job."""
DEMO = ("koopcast_server.demo", "koopcast_server.plots")
"""What needs the extra `demo`, above all matplotlib."""
NO_IO = {"asyncio", "io", "logging", "os", "pathlib", "socket", "subprocess", "threading", "time", "warnings"}

_ABOVE_THE_ENGINE = [
    "job",
    "leases",
    "uploads",
    "gram_rows",
    "row_intake",
    "metrics",
    "grpc_",
    "http_",
    "service",
]
MAY_NOT_IMPORT = {
    "koopcast_server.answering": ["engine", "held_", *_ABOVE_THE_ENGINE],
    "koopcast_server.held_": ["engine", *_ABOVE_THE_ENGINE],
    "koopcast_server.gram_store": ["engine", "held_", "answering", "solving", *_ABOVE_THE_ENGINE],
    "koopcast_server.shared_memory": ["engine", "held_", "interceptor", *_ABOVE_THE_ENGINE],
    "koopcast_server.steps": ["engine", "held_", *_ABOVE_THE_ENGINE],
    "koopcast_server.gram_rows": ["engine", "held_", "job", "metrics", "grpc_", "http_", "service"],
    "koopcast_server.row_intake": ["metrics", "grpc_", "http_", "interceptor", "service"],
    "koopcast_server.engine": _ABOVE_THE_ENGINE,
    "koopcast_server.job": ["metrics", "grpc_", "http_", "interceptor", "service"],
    "koopcast_server.leases": ["job", "uploads", "metrics", "grpc_", "http_", "interceptor", "service"],
    "koopcast_server.judging": ["uploads", "metrics", "grpc_", "http_", "interceptor", "service"],
    "koopcast_server.uploads": ["metrics", "grpc_", "http_", "interceptor", "service"],
    "koopcast_server.grpc_": ["http_", "service", "koopman"],
    "koopcast_server.http_": ["grpc_", "interceptor", "service", "koopman", "engine"],
}
"""grpc_*, http_* -> jobs -> engine -> koopman, window; by prefixes of module names."""
TRANSPORTS = {"grpc", "grpc_health", "fastapi", "starlette", "uvicorn"}


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, where, and whether when the importer itself is imported."""

    importer: str
    line: int
    target: str
    in_function: bool
    for_types: bool

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path, room: Path) -> str:
    return ".".join(path.relative_to(room).with_suffix("").parts).removesuffix(".__init__")


def _walk(
    node: ast.AST, in_function: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, in_function, for_types
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(child, True, for_types)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), in_function, True)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), in_function, for_types)
        else:
            yield from _walk(child, in_function, for_types)


def imports_of(source: str, importer: str) -> Iterator[Import]:
    for statement, in_function, for_types in _walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            targets = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{importer}:{statement.lineno} imports relatively"
            # `from package import module` names the module too.
            targets = [f"{statement.module}.{alias.name}" for alias in statement.names]
        else:  # pragma: no cover
            continue
        for target in targets:
            yield Import(importer, statement.lineno, target, in_function, for_types)


@cache
def all_imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for package, room in ROOMS.items():
        for path in sorted((room / package).rglob("*.py")):
            if "v1" not in path.parts:  # generated
                found += imports_of(path.read_text(encoding="utf-8"), module_name(path, room))
    return tuple(found)


def inside(module: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def client_imports() -> list[Import]:
    return [found for found in all_imports() if inside(found.importer, ("koopcast",))]


def server_imports() -> list[Import]:
    return [found for found in all_imports() if inside(found.importer, ("koopcast_server",))]


def test_the_reading_of_imports() -> None:
    source = "import a.b\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    try:\n        import e\n    finally: pass\n"
    assert [(i.target, i.in_function, i.for_types) for i in imports_of(source, "m")] == [
        ("a.b", False, False),
        ("c.d", False, True),
        ("e", True, False),
    ]
    assert len(client_imports()) > 50
    assert len(server_imports()) > 50


def test_the_rooms_are_not_packages() -> None:
    for package, room in ROOMS.items():
        assert not (room / "__init__.py").exists()
        assert (room / package / "py.typed").exists()


def test_the_client_does_not_import_the_server() -> None:
    wrong = [
        str(found)
        for found in client_imports()
        if found.package == "koopcast_server"
        and not (found.in_function and found.importer in MAY_START_THE_SERVER)
    ]
    assert wrong == []


def test_torch_in_the_client_is_the_hooks_and_the_windows() -> None:
    wrong = [
        str(found)
        for found in client_imports()
        if found.package == "torch" and not found.for_types and not inside(found.importer, CLIENT_TORCH)
    ]
    assert wrong == []


def test_torch_in_the_server_is_the_engines() -> None:
    wrong = [
        str(found)
        for found in server_imports()
        if found.package == "torch" and not found.for_types and not inside(found.importer, SERVER_TORCH)
    ]
    assert wrong == []


def test_the_mathematics_knows_torch_and_itself() -> None:
    wrong = [
        str(found)
        for found in server_imports()
        if inside(found.importer, ("koopcast_server.koopman",))
        and not inside(found.target, ("torch", "koopcast_server.koopman"))
        and (found.package not in sys.stdlib_module_names or found.package in NO_IO)
    ]
    assert wrong == []


def test_only_one_module_asks_lapack_for_eigenvalues() -> None:
    """MKL's were seen to end the process on some finite matrices; `koopman.eigen` keeps these from it."""
    calls = {
        module_name(path, ROOMS["koopcast_server"])
        for path in (ROOMS["koopcast_server"] / "koopcast_server").rglob("*.py")
        if re.search(r"linalg\.eig(vals)?\(", path.read_text(encoding="utf-8"))
    }
    assert calls == {"koopcast_server.koopman.eigen"}


def test_the_window_knows_neither_side() -> None:
    wrong = [
        str(found)
        for found in client_imports()
        if inside(found.importer, ("koopcast.window",))
        and found.package in ("koopcast", "koopcast_server", "grpc")
        and not inside(found.target, ("koopcast.window", "koopcast.blocks"))
        and found.importer not in ("koopcast.window.held", "koopcast.window.shards")
    ]
    assert wrong == []


def test_the_window_in_the_trainer_makes_no_calls() -> None:
    modules = ("koopcast.window.held", "koopcast.window.shards")
    targets = {found.target for found in client_imports() if found.importer in modules}
    calls = ("grpc", "koopcast_server", "koopcast.v1", "koopcast.job", "koopcast.client", "koopcast.hook")
    assert not [target for target in targets if inside(target, calls)]
    assert "koopcast.window.ring.Window" in targets


def test_the_arrows_within_the_server() -> None:
    wrong = [
        str(found)
        for found in server_imports()
        for importer, forbidden in MAY_NOT_IMPORT.items()
        if found.importer.startswith(importer) and not found.for_types
        for name in forbidden
        if found.target.startswith(f"koopcast_server.{name}")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    [
        "engine",
        "held_window",
        "held_grams",
        "jobs",
        "leases",
        "uploads",
        "judging",
        "gram_rows",
        "row_intake",
        "shared_memory",
        "steps",
    ],
)
def test_what_lies_below_the_transports_does_not_know_them(module: str) -> None:
    wrong = [
        str(found)
        for found in server_imports()
        if found.importer == f"koopcast_server.{module}" and found.package in TRANSPORTS
    ]
    assert wrong == []


def test_importing_koopcast_is_light() -> None:
    code = "import json, sys, koopcast; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {
        "torch",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "rich",
        "typer",
        "structlog",
        "koopcast_server",
    }
    assert heavy & set(json.loads(run.stdout)) == set()


# ----------------------------------------------------------------------------------------------------- packaging


@cache
def pyproject() -> dict[str, object]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Names of the distributions that the base install, and these extras, bring."""
    project = pyproject()["project"]
    assert isinstance(project, dict)
    names: set[str] = set()
    for requirement in [
        *project["dependencies"],
        *(r for e in extras for r in project["optional-dependencies"][e]),
    ]:
        match = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?.*", requirement)
        assert match
        if match[1] == "koopcast":
            names |= declared(*match[2].split(","))
        else:
            names.add(normal(match[1]))
    return names


def undeclared(imports: list[Import], brought: set[str]) -> list[str]:
    providers = packages_distributions()
    return [
        str(found)
        for found in imports
        if found.package not in sys.stdlib_module_names and found.package not in ROOMS and not found.for_types
        if not brought & {normal(provider) for provider in providers.get(found.package, [])}
    ]


def test_every_import_is_declared_by_the_install_that_has_it() -> None:
    light = [found for found in client_imports() if not inside(found.importer, CLIENT_TORCH)]
    hook = [found for found in client_imports() if inside(found.importer, CLIENT_TORCH)]
    demo = [found for found in server_imports() if inside(found.importer, DEMO)]
    server = [found for found in server_imports() if found not in demo]
    assert undeclared(light, declared()) == []
    assert undeclared(hook, declared("torch")) == []
    assert undeclared(server, declared("server")) == []
    assert undeclared(demo, declared("demo")) == []


def test_what_needs_the_demo_extra_is_loaded_when_it_is_asked_for() -> None:
    importers = [
        found for found in server_imports() if inside(found.target, DEMO) and not inside(found.importer, DEMO)
    ]
    assert {found.importer for found in importers} == {"koopcast_server.__main__"}
    assert [str(found) for found in importers if not found.in_function] == []


def test_the_runtime_floors_are_those_of_the_generated_code() -> None:
    generator = (REPOSITORY / "proto/generate.py").read_text(encoding="utf-8")
    requirements = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("grpcio", "protobuf"):
        pinned = re.search(rf'"{name}==([\d.]+)"', generator)
        assert pinned
        assert re.search(rf'"{name}>={re.escape(pinned[1])}[",]', requirements), (
            f"{name}'s floor is not {pinned[1]}"
        )


def test_the_lock_pins_everything_and_no_gpu_packages() -> None:
    lines = [
        line
        for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.lstrip().startswith("#")
    ]
    pins = [re.fullmatch(r"([a-z0-9.-]+)==[^\s;]+(?: ; .+)?", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if pin is None]
    names = {pin[1] for pin in pins if pin}
    assert declared("demo") <= names, "run make lock"
    assert [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))] == []
