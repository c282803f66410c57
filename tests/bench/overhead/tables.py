"""The record of a run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from overhead.trainer import parameters_of
from recording import nice_seconds, table

__all__ = ["markdown"]


def markdown(record: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [f"Measured on {record['machine']}."]
    if record["time"]:
        parts += ["### Without jumps", _times(record["time"], "observe")]
        parts += ["### With jumps", _jumps(record["time"])]
    if record["narrow"]:
        parts += ["### More than the link takes", _times(record["narrow"], "observe")]
    if record["memory"]:
        parts += ["### Memory of the trainer", _memory(record["memory"])]
    return "\n\n".join(parts)


def _times(cases: Sequence[Mapping[str, Any]], mode: str) -> str:
    head = [
        "parameters", "batch", "every", "step, plain", "median step", "mean step", "whole run", "CPU time", "copies and waits",
        "blocked", "pushed", "dropped", "MB/s sent",
    ]  # fmt: skip
    rows = []
    for case in cases:
        plain, hooked = case["runs"]["plain"], case["runs"][mode]
        stats = [run["stats"] for run in hooked]
        in_hook = np.median([run["stats"]["seconds_in_hook"] / run["run_seconds"] for run in hooked])
        blocked = np.median([run["stats"]["seconds_blocked"] for run in hooked])
        rate = np.median([run["stats"]["bytes_sent"] / 1e6 / run["run_seconds"] for run in hooked])
        rows.append(
            [
                *_setting(case),
                nice_seconds(float(np.median([run["median_step_seconds"] for run in plain]))),
                _slowdown(plain, hooked, "median_step_seconds"),
                _slowdown(plain, hooked, "mean_step_seconds"),
                _slowdown(plain, hooked, "run_seconds"),
                _slowdown(plain, hooked, "cpu_seconds"),
                f"{100 * in_hook:.2f} %",
                nice_seconds(float(blocked)),
                f"{np.median([one['snapshots_pushed'] for one in stats]):.0f}",
                f"{np.median([one['snapshots_dropped'] for one in stats]):.0f}",
                f"{rate:.0f}",
            ]
        )
    return table(head, rows)


def _jumps(cases: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "parameters",
        "batch",
        "every",
        "step, plain",
        "whole run",
        "proposed",
        "accepted",
        "probes",
        "in the hook",
        "blocked",
        "longest step",
    ]
    rows = []
    for case in cases:
        plain, hooked = case["runs"]["plain"], case["runs"]["jump"]
        stats = [run["stats"] for run in hooked]
        rows.append(
            [
                *_setting(case),
                nice_seconds(float(np.median([run["median_step_seconds"] for run in plain]))),
                _slowdown(plain, hooked, "run_seconds"),
                *(
                    f"{np.median([one[name] for one in stats]):.0f}"
                    for name in ("jumps_proposed", "jumps_accepted", "probe_evaluations")
                ),
                nice_seconds(float(np.median([one["seconds_in_hook"] for one in stats]))),
                nice_seconds(float(np.median([one["seconds_blocked"] for one in stats]))),
                nice_seconds(float(np.median([run["longest_step_seconds"] for run in hooked]))),
            ]
        )
    return table(head, rows)


def _memory(cases: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "parameters",
        "optimizer",
        "averaging",
        "between jumps",
        "at a jump",
        "while it is watched",
        "jumps",
    ]
    rows = []
    for case in cases:
        setting, unit = case["setting"], case["parameter_bytes"]
        rows.append(
            [
                setting["model"],
                setting["optimizer"],
                "yes" if setting["average"] else "no",
                *(
                    f"{case['peak_bytes'][kind] / unit:.2f}"
                    for kind in ("between jumps", "at a jump", "watched")
                ),
                str(case["stats"]["jumps_proposed"]),
            ]
        )
    return table(head, rows)


def _setting(case: Mapping[str, Any]) -> list[str]:
    setting = case["setting"]
    return [f"{parameters_of(setting['model']):,}", str(setting["batch"]), str(setting["every"])]


def _slowdown(plain: Sequence[Mapping[str, Any]], hooked: Sequence[Mapping[str, Any]], name: str) -> str:
    """Median of the ratios of neighbouring runs, less one; in brackets least and most. Unit: per cent."""
    ratios = [100 * (other[name] / one[name] - 1) for one, other in zip(plain, hooked, strict=True)]
    return f"{np.median(ratios):+.1f} % [{min(ratios):+.1f}, {max(ratios):+.1f}]"
