"""What the benchmarks of transfer, overhead and fleet share: records, quantiles, tables, the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = [
    "MIB",
    "cpu_seconds",
    "machine",
    "nice_seconds",
    "quantiles",
    "read_record",
    "spread",
    "status_bytes",
    "table",
    "write_into",
    "write_record",
]

MIB: Final = 1 << 20


def machine(*packages: str) -> str:
    """What the figures were measured on: processor, memory, versions of `packages`, load at the start."""
    model = _first("/proc/cpuinfo", "model name") or platform.machine()
    memory = int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {versions}; load when it began {os.getloadavg()[0]:.1f}"
    )


def write_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write what was measured as JSON, with the time; nowhere where `path` is None."""
    if path is not None:
        dated = {"measured": datetime.now(UTC).isoformat(timespec="seconds"), **record}
        path.write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """A record that `write_record` wrote."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_into(path: Path, name: str, text: str) -> None:
    """Put `text` between the lines ``<!-- name -->`` and ``<!-- end of name -->`` of a Markdown file.

    Raises:
        ValueError: the file has no such lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} has no lines '{begin.strip()}' and '{end}'")
    path.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quantiles(values: Sequence[float], *probabilities: float) -> list[float]:
    """Quantiles of some values."""
    return [float(value) for value in np.quantile(values, probabilities)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and, in brackets, least and most."""
    middle = float(np.median(values))
    return f"{middle:.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def nice_seconds(seconds: float) -> str:
    """A time with three digits, in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def status_bytes(name: str, process_id: int | str = "self") -> int:
    """A line of ``/proc/<process>/status``, such as VmRSS or VmHWM. Unit: bytes.

    Raises:
        RuntimeError: the system has no such line.
    """
    line = _first(f"/proc/{process_id}/status", name)
    if line is None:
        raise RuntimeError(f"this system does not tell {name} of a process")
    return int(line.split()[0]) << 10


def cpu_seconds(process_id: int) -> float:
    """Processor time that a process has taken so far, all threads together. Unit: seconds, in steps of 10 ms."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _first(path: str, name: str) -> str | None:
    if not Path(path).exists():
        return None
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.partition(":")[0].strip() == name:
            return line.partition(":")[2].strip()
    return None
