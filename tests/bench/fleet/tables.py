"""The record of a run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from recording import MIB, nice_seconds, table

__all__ = ["markdown"]

_IN_FLIGHT: Final = 64 * MIB
"""What one upload may have under way."""


def markdown(record: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [f"Measured on {record['machine']}."]
    if record["memory"]:
        parts += ["### Memory while clients push", _memory(record["memory"])]
    if record["cancelled"]:
        parts += ["### Memory over cancelled uploads", _cancelled(record["cancelled"])]
    if record["saturation"]:
        parts += ["### Trainers at saturation", _saturation(record["saturation"])]
    return "\n\n".join(parts)


def _memory(cases: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "clients", "snapshot", "windows", "allowed in flight", "service, idle", "peak", "peak - windows",
        "less in flight and idle", "afterwards",
    ]  # fmt: skip
    rows = []
    for case in cases:
        flight = case["clients"] * _IN_FLIGHT
        above = case["peak"] - case["windows"]
        sizes = (
            case["bytes"], case["windows"], flight, case["idle"], case["peak"], above, above - flight - case["idle"],
            case["resident after"],
        )  # fmt: skip
        rows.append([str(case["clients"]), *map(_mib, sizes)])
    return table(head, rows)


def _cancelled(cases: Sequence[Mapping[str, Any]]) -> str:
    """The first reading is taken before anything was cancelled."""
    rows = []
    for case in cases:
        resident = case["resident"]
        numbers = np.linspace(0, case["uploads"], len(resident))
        half = len(resident) // 2
        slope = np.polyfit(numbers[half:], resident[half:], 1)[0]
        rows.append(
            [
                f"{case['uploads']:,}",
                _mib(case["sent"]),
                _mib(resident[0]),
                _mib(resident[half]),
                _mib(resident[-1]),
                f"{slope / 1024:+.1f} KiB",
            ]
        )
    head = ["uploads", "sent of each", "resident before", "half way", "at the end", "an upload, second half"]
    return table(head, rows)


def _saturation(cases: Sequence[Mapping[str, Any]]) -> str:
    head = ["", *(f"run {number}: p50 / p99" for number, _ in enumerate(cases, 1))]
    rows = []
    for name in cases[0]["calls"]:
        found = [case["calls"][name] for case in cases]
        rows.append([name, *(f"{nice_seconds(one['p50'])} / {nice_seconds(one['p99'])}" for one in found)])
    rounds = [case["seconds a round"] for case in cases]
    fairness = [f"{one['slowest'] / one['fastest']:.2f}" for one in rounds]
    rows.append(["slowest trainer / fastest", *fairness])
    rows.append(["pushes and answers", *(f"{case['bytes a second'] / 1e6:.0f} MB/s" for case in cases)])
    first = cases[0]
    title = f"{first['trainers']} trainers of {first['size']:,} parameters, {first['seconds']:g} s a run."
    return f"{title}\n\n{table(head, rows)}"


def _mib(nbytes: float) -> str:
    return f"{nbytes / MIB:,.0f} MiB"
