"""The README's Python runs as it stands, in order, against a real service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from services import REPOSITORY, running_service

WRITTEN_TARGET = "127.0.0.1:50051"


def python_blocks() -> list[str]:
    """The fenced Python blocks, in order."""
    return re.findall(
        r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def test_the_trainer_example_is_eight_lines_and_a_print() -> None:
    lines = [line for line in python_blocks()[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_every_block_runs(tmp_path: Path) -> None:
    blocks = python_blocks()
    assert len(blocks) >= 3
    with running_service() as service:
        script = tmp_path / "readme.py"
        script.write_text("\n".join(blocks).replace(WRITTEN_TARGET, service.target))
        result = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert "jumps_accepted=" in result.stdout
    assert result.stdout.rstrip().endswith("12")


def test_nothing_named_in_the_readme_is_missing() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / path).exists(), path
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
