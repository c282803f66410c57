"""Cells are planned, hashed, kept and run as the command needs it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acceleration import training
from acceleration.cells import Choice, Results, key_of, plan_cells, read_tuned, untuned
from acceleration.methods import METHODS, Start
from acceleration.methods.running import Beside
from acceleration.sources import code_of, digest_of, sources_of
from acceleration.training import Cell, train_cell
from koopcast_server.demo.tasks import TASKS
from koopcast_server.demo.tasks.task import Problem, Task

CELL = Cell("hamiltonian-oscillator", "adamw", "plain", 0, False, 1e-2, "linear", 64)
TUNED = {
    task: {name: {"learning_rate": 0.01, "schedule": "linear"} for name in ("adamw", "sgd-momentum", "adam")}
    for task in ("hamiltonian-oscillator", "henon-heiles")
}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def made_up(cell: Cell, code: str) -> dict[str, Any]:
    names = ("task", "optimizer", "method", "seed", "timed")
    return {**dict(zip(names, key_of(cell), strict=True)), "loss": [1.0], "code": code}


# ------------------------------------------------------------------------------------------------------ one run


def test_a_run_is_what_it_says() -> None:
    record = train_cell(CELL, None)
    assert len(record["counted"]) == len(record["seconds"]) == len(record["loss"]) == 65
    assert record["counted"] == list(range(65))
    assert record["seconds"] == sorted(record["seconds"])
    assert record["loss"][-1] < record["loss"][0]
    assert (record["optimizer_steps"], record["counted_steps"], record["diverged"]) == (64, 64.0, False)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_seed_decides() -> None:
    first, again = (train_cell(CELL, None)["loss"] for _ in range(2))
    assert first == again
    assert train_cell(replace(CELL, seed=1), None)["loss"] != first


class Spender(Beside):
    """Spends 2.5 steps at every fourth."""

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False

    def after_step(self) -> float:
        self.steps += 1
        return 2.5 if self.steps % 4 == 0 else 0.0

    def facts(self) -> dict[str, Any]:
        return {"rate": math.nan, "share": 1 / 3, "pair": (1, 2)}

    def close(self) -> None:
        self.closed = True


def test_what_a_method_spends_is_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    spender = Spender()
    monkeypatch.setattr(training, "METHODS", {"spender": lambda _: spender})
    record = train_cell(replace(CELL, method="spender", budget_steps=650), None)
    assert (
        record["optimizer_steps"] == 420
    )  # 650 counted steps and 5 % more, of which 2.5 in 6.5 are spent otherwise
    assert record["counted_steps"] == 682.5
    assert 41 < len(record["counted"]) <= 65 + 3
    assert max(np.diff(record["counted"])) < 1.5 * 650 / 64 + 2.5 + 1.5
    assert record["facts"] == {"rate": None, "share": 0.333333, "pair": [1, 2]}
    assert spender.closed


def task_of(evaluate: Callable[[], float]) -> Task:
    """(w + b)², one weight and one bias."""
    model = nn.Linear(1, 1)

    def loss(_: int = 0) -> Tensor:
        given: Tensor = model(torch.ones(1))
        return given.square().sum()

    problem = Problem(model, loss, evaluate, loss)
    return Task("made-up", "made up", "deterministic", 64, "loss", lambda _: problem)


def test_evaluations_are_neither_timed_nor_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> float:
        time.sleep(0.01)
        return 1.0

    monkeypatch.setattr(training, "TASKS", {"made-up": task_of(slow)})
    record = train_cell(replace(CELL, task="made-up"), None)
    assert len(record["loss"]) == 65
    assert record["seconds_total"] < 0.5 * 65 * 0.01


@pytest.mark.parametrize(("rate", "evaluated", "steps"), [(1e30, 1.0, range(1, 6)), (1e-3, math.nan, [0])])
def test_a_run_that_diverges_ends(
    monkeypatch: pytest.MonkeyPatch, rate: float, evaluated: float, steps: Sequence[int]
) -> None:
    monkeypatch.setattr(training, "TASKS", {"made-up": task_of(lambda: evaluated)})
    record = train_cell(replace(CELL, task="made-up", optimizer="sgd", learning_rate=rate), None)
    assert record["diverged"]
    assert record["optimizer_steps"] in steps
    assert all(map(math.isfinite, record["loss"]))


# ------------------------------------------------------------------------------------------------------- the plan


def test_the_order_of_cells() -> None:
    choice = Choice(tasks=tuple(TUNED), optimizers=("adamw", "adam"), methods=("linear", "plain", "ema"))
    cells = plan_cells(choice, TUNED)
    seeds = [cell.seed for cell in cells if not cell.timed]
    assert seeds == sorted(seeds)
    assert seeds.count(0) == 2 * 2 * 3
    assert seeds.count(1) == 2 * 1 * 3  # adam has no part in the headline
    timed = [cell for cell in cells if cell.timed]
    assert cells[-len(timed) :] == timed
    assert {(cell.optimizer, cell.seed) for cell in timed} == {("adamw", 0)}
    assert [cell.method for cell in timed] == ["plain", "linear"] * 2 + ["ema"] * 2
    assert len(set(map(key_of, cells))) == len(cells)


def test_what_is_not_tuned_is_told(tmp_path: Path) -> None:
    choice = Choice(tasks=("henon-heiles",), optimizers=("adamw", "adagrad"))
    assert untuned(choice, TUNED) == ["henon-heiles with adagrad"]
    assert {cell.optimizer for cell in plan_cells(choice, TUNED)} == {"adamw"}
    assert read_tuned(tmp_path / "none.json") == {}


# ------------------------------------------------------------------------------------------------------- the code


def test_words_are_not_code() -> None:
    code = 'def f(x: int) -> int:\n    """Says."""\n    # A remark.\n    return x + 1\n\n\nN = 3\n"""What N is."""\n'
    same = "def f(x: int) -> int:\n    return (x +\n        1)\nN = 3  # three\n"
    assert digest_of(code) == digest_of(same)
    assert digest_of(code) != digest_of(code.replace("x + 1", "x + 2"))
    assert digest_of(code) != digest_of(code.replace("N = 3", "N = 4"))
    assert digest_of('def f() -> None:\n    """Only words."""\n') == digest_of("def f() -> None:\n    pass\n")


def test_each_cell_depends_on_its_own_sources() -> None:
    def names(task: str, method: str) -> set[str]:
        return {"/".join(path.parts[-2:]) for path in sources_of(task, method)}

    plain = names("hamiltonian-oscillator", "plain")
    assert {
        "acceleration/training.py",
        "suite/marks.py",
        "suite/optimizers.py",
        "tasks/hamiltonian.py",
        "methods/plain.py",
    } <= plain
    assert not {"methods/lines.py", "tasks/regression.py", "hook/trial.py"} & plain
    assert {"methods/lines.py", "methods/probed.py", "methods/masks.py"} <= names("regression-full", "linear")
    assert "koopcast/partition.py" in names("regression-full", "nodes")
    ours = names("regression-full", "ours")
    assert {"hook/trial.py", "window/gram.py", "koopman/predict.py", "koopcast_server/solving.py"} <= ours
    assert all(sources_of(task, method) for task in TASKS for method in METHODS)


def test_the_hash_holds_what_was_tuned() -> None:
    assert code_of(CELL) == code_of(replace(CELL, seed=3, timed=True))
    others = [
        replace(CELL, learning_rate=2e-2),
        replace(CELL, schedule="cosine"),
        replace(CELL, budget_steps=65),
        replace(CELL, method="ema"),
    ]
    assert len({code_of(cell) for cell in (CELL, *others)}) == 5


# ---------------------------------------------------------------------------------------------------- the records


def test_done_cells_are_found_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    other = replace(CELL, seed=1)
    codes = {key_of(CELL): "a", key_of(other): "b"}
    results.add(made_up(CELL, "a"))
    results.add(made_up(other, "stale"))
    assert list(Results(tmp_path).read(codes)) == [key_of(CELL)]


def test_a_line_cut_short_costs_that_line_only(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(made_up(CELL, "a"))
    path = tmp_path / f"{CELL.task}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"task": "hamil')
    other = replace(CELL, seed=1)
    results.add(made_up(other, "b"))
    codes = {key_of(CELL): "a", key_of(other): "b"}
    assert set(results.read(codes)) == set(codes)
    results.compact(codes)
    assert [json.loads(line)["code"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b"]


def test_compacting_drops_what_is_stale_or_double(tmp_path: Path) -> None:
    results = Results(tmp_path)
    unknown = replace(CELL, optimizer="sgd")
    for code in ("a", "stale", "a"):
        results.add({**made_up(CELL, code), "loss": [0.5]})
    results.add(made_up(unknown, "whatever"))
    results.compact({key_of(CELL): "a"})
    lines = (tmp_path / f"{CELL.task}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["code"] for line in lines] == ["a", "whatever"]


def test_start_has_all_that_methods_need() -> None:
    problem = TASKS["hamiltonian-oscillator"].make(0)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for name in METHODS:
        if not name.startswith("ours"):
            running = METHODS[name](Start(problem, optimizer, scheduler, 64))
            assert json.loads(json.dumps(running.facts())) == running.facts()
