"""The command: it runs what is not done, keeps it, and writes page and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acceleration import run
from acceleration.cells import Choice
from acceleration.run import Places, run_table, write_pages
from acceleration.service import local_service
from acceleration.tables import PAGE
from acceleration.workers import Failed
from koopcast_server.demo.tasks.data import DIAMONDS_VARIABLE

pytestmark = pytest.mark.timeout(300)
CHOICE = Choice(
    tasks=("hamiltonian-oscillator",),
    optimizers=("adamw",),
    methods=("plain", "ours"),
    seeds=(0,),
    timed=False,
    budget_share=0.06,
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    entry = {"adamw": {"learning_rate": 0.01, "schedule": "linear"}}
    monkeypatch.setattr(
        run, "read_tuned", lambda: {"hamiltonian-oscillator": entry, "regression-full": entry}
    )
    return Places(tmp_path / "results", tmp_path / "README.md", tmp_path, None)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    run_table(replace(CHOICE, methods=("plain",)), places, workers=1)
    run_table(CHOICE, places, workers=1)
    run_table(CHOICE, places, workers=1)
    printed = capfd.readouterr().out
    assert [line for line in printed.splitlines() if "done before" in line] == [
        "1 cells, 0 of them done before",
        "2 cells, 1 of them done before",
        "2 cells, 2 of them done before",
    ]
    lines = (places.results / "hamiltonian-oscillator.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["method"] for record in records] == ["ours", "plain"]
    stats = records[0]["facts"]["stats"]
    assert (stats["snapshots_dropped"], stats["service_errors"]) == (0, 0)
    assert stats["last_decision"] != "no attempt yet"
    before = PAGE.read_text(encoding="utf-8")
    write_pages(CHOICE, places)
    assert "hamiltonian-oscillator" in places.page.read_text(encoding="utf-8")
    assert (places.plots / "acceleration.png").stat().st_size > 0
    assert PAGE.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_missing_data_leave_a_task_out(
    places: Places, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DIAMONDS_VARIABLE, "/nowhere.csv")
    choice = replace(CHOICE, tasks=("regression-full",), methods=("plain",))
    run_table(choice, places, workers=1)
    assert "left out: regression-full" in capfd.readouterr().out
    with pytest.raises(Failed, match="regression-full"):
        run_table(choice, places, workers=1, skip_missing=False)


def test_the_service_is_real() -> None:
    with local_service() as target:
        assert target.startswith("unix:")
