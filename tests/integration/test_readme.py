"""The Python of README and guide runs as it stands, in order, against a real service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services import REPOSITORY, running_service

WRITTEN_TARGET = "127.0.0.1:50051"


README, GUIDE = REPOSITORY / "README.md", REPOSITORY / "client/README.md"


def blocks_of(page: Path, language: str = "python") -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def output_of(script: Path, blocks: list[str]) -> str:
    """What the blocks print, run together; warnings are errors."""
    script.write_text("\n".join(blocks))
    command = [sys.executable, "-W", "error", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_trainer_example_is_eight_lines_and_a_print() -> None:
    lines = [line for line in blocks_of(README)[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_every_block_runs(tmp_path: Path) -> None:
    blocks = blocks_of(README)
    assert len(blocks) >= 3
    with running_service() as service:
        printed = output_of(
            tmp_path / "readme.py", [block.replace(WRITTEN_TARGET, service.target) for block in blocks]
        )
    assert "jumps_accepted=" in printed
    assert printed.rstrip().endswith("12")


def test_the_guide_prints_what_it_shows(tmp_path: Path) -> None:
    """But for the figures, which a busy machine and other versions of torch change."""
    shown = "".join(blocks_of(GUIDE, "text")).splitlines()
    printed = output_of(tmp_path / "guide.py", blocks_of(GUIDE)).splitlines()
    assert words_of(shown[0]) == words_of(printed[0])
    assert [words_of(line) for line in shown[-4:]] == [words_of(line) for line in printed[-4:]]
    assert all(line.startswith("step ") for line in printed[2:-4])
    assert any("refined in" in line for line in printed[2:-4])


def words_of(line: str) -> list[str]:
    return re.findall(r"[A-Za-z]{2,}", line)


@pytest.mark.parametrize("page", [README, GUIDE], ids=lambda page: page.parent.name)
def test_nothing_named_is_missing(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
