"""Many trainers at once, as fast as the service answers: latencies, fairness, and health checks meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from fleet import health, load
from recording import quantiles
from services import running_service

__all__ = ["saturated"]

_PROCESSES: Final = 2
_NICENESS: Final = 10


def saturated(trainers: int, size: int, seconds: float) -> dict[str, Any]:
    """So many trainers with `size` float32 parameters each, from two processes of low priority.

    Raises:
        RuntimeError: a call failed, or a prediction was wrong.
    """
    with running_service("--memory-limit", "12GiB") as service, health.idle_server() as idle:
        loads = [
            subprocess.Popen(
                [
                    "nice",
                    f"-n{_NICENESS}",
                    *(sys.executable, str(Path(load.__file__)), service.target),
                    *("--prefix", f"load{number}", "--jobs", str(trainers // _PROCESSES)),
                    *("--size", str(size), "--seconds", str(seconds)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(_PROCESSES)
        ]
        checks = health.watch(service.target, idle, lambda: any(each.poll() is None for each in loads))
        reports = [json.loads(each.communicate()[0]) for each in loads]
    failures = [failure for report in reports for failure in report["failures"]]
    if failures:
        raise RuntimeError("; ".join(failures[:5]))
    return _summary(trainers, size, seconds, reports, checks)


def _summary(
    trainers: int, size: int, seconds: float, reports: list[dict[str, Any]], checks: dict[str, list[float]]
) -> dict[str, Any]:
    def together(name: str) -> list[float]:
        return [value for report in reports for value in report["seconds"][name]]

    rounds = {name: value for report in reports for name, value in report["seconds_a_round"].items()}
    worst = max(together("error"))
    if not worst < 1e-3:
        raise RuntimeError(f"a prediction was wrong by {worst:.1e} of the distance moved")
    calls = {"push": together("push"), "predict": together("predict")}
    calls |= {f"health, {name}": values for name, values in checks.items()}
    return {
        "trainers": trainers,
        "size": size,
        "seconds": seconds,
        "calls": {
            name: {
                "count": len(values),
                **dict(zip(("p50", "p99", "max"), quantiles(values, 0.5, 0.99, 1.0), strict=True)),
            }
            for name, values in calls.items()
        },
        "seconds a round": {
            "fastest": min(rounds.values()),
            "median": float(np.median(list(rounds.values()))),
            "slowest": max(rounds.values()),
        },
        "bytes a second": 4 * size * (len(calls["push"]) + len(calls["predict"])) / seconds,
        "largest error": worst,
    }
