"""What code a run depends on, as one hash: comments, docstrings and formatting are not in it."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from acceleration.methods import METHODS
from acceleration.training import Cell
from koopcast_server.demo.tasks import TASKS

__all__ = ["OUR_SOURCES", "code_of", "digest_of", "sources_of"]

REPOSITORY: Final = Path(__file__).resolve().parents[3]
_ROOTS: Final = (REPOSITORY / "client", REPOSITORY / "server", REPOSITORY / "tests/bench")
_EVERY_RUN: Final = (
    "acceleration.training",
    "koopcast_server.demo.suite.marks",
    "koopcast_server.demo.suite.optimizers",
)
_TASK_MODULES: Final = ("koopcast_server.demo.tasks", "koopcast_server.demo.data")
_METHOD_MODULES: Final = (
    "acceleration.methods",
    "koopcast.partition",
    "koopcast.blocks",
    "koopcast.hook.units",
)
OUR_SOURCES: Final = (
    "client/koopcast/hook/**/*.py",
    "client/koopcast/window/**/*.py",
    "client/koopcast/operator.py",
    "client/koopcast/gram*.py",
    "client/koopcast/partition.py",
    "server/koopcast_server/koopman/**/*.py",
    "server/koopcast_server/answering.py",
    "server/koopcast_server/engine.py",
    "server/koopcast_server/gram_*.py",
    "server/koopcast_server/held_*.py",
    "server/koopcast_server/judging.py",
    "server/koopcast_server/solving.py",
    "server/koopcast_server/window_shape.py",
)
"""What decides koopcast's predictions and jumps; that snapshots arrive as they were sent is taken for granted."""
_OURS: Final = ("ours", "ours-no-probe")


def code_of(cell: Cell) -> str:
    """Hash of all that can change the cell's record but chance: sources, tuned rate and schedule, budget, torch."""
    parts = [
        f"{path.relative_to(REPOSITORY)} {digest_of(path.read_text(encoding='utf-8'))}"
        for path in sources_of(cell.task, cell.method)
    ]
    parts += [f"{cell.learning_rate!r} {cell.schedule} {cell.budget_steps}", torch.__version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def sources_of(task: str, method: str) -> tuple[Path, ...]:
    """The files, in a fixed order."""
    found = {_path_of(module) for module in _EVERY_RUN}
    found |= _closure(_module_of(TASKS[task].make), _TASK_MODULES)
    found |= _closure(_module_of(METHODS[method]), _METHOD_MODULES)
    if method in _OURS:
        found |= {path for pattern in OUR_SOURCES for path in REPOSITORY.glob(pattern)}
    return tuple(sorted(path for path in found if path is not None))


@functools.lru_cache(maxsize=512)
def digest_of(source: str) -> str:
    """Hash of Python source, without comments, docstrings, other bare strings and formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and statements:
                kept = [statement for statement in statements if not _is_text(statement)]
                setattr(node, name, kept or [ast.Pass()])
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _module_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(function.__module__)


def _closure(first: str, prefixes: Sequence[str]) -> set[Path | None]:
    """Files of a module and of those that it imports, itself or through others, below these prefixes."""
    found: dict[str, Path | None] = {}
    waiting = [first]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        path = found[module] = _path_of(module)
        if path is not None:
            imported = _imported(ast.parse(path.read_text(encoding="utf-8")))
            waiting += [one for one in imported if any(one == p or one.startswith(p + ".") for p in prefixes)]
    return set(found.values())


def _imported(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _path_of(inner) is not None else node.module


def _path_of(module: str) -> Path | None:
    """A module's file in this repository, if it is one of its own."""
    relative = module.replace(".", "/")
    for root in _ROOTS:
        for path in (root / f"{relative}.py", root / relative / "__init__.py"):
            if path.is_file():
                return path
    return None
