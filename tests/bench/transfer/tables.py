"""The record of a run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from recording import nice_seconds, spread, table
from transfer.contenders import FLIGHT_MISSING
from transfer.measure import YARDSTICK

__all__ = ["markdown"]

_NAMES: Final = {"tcp": "TCP", "tls": "TLS", "unix": "Unix socket"}
_FLIGHT: Final = "PyArrow Flight"
_MORE: Final = {"push": 4, "answer": 2}
_LEAST_SPLIT: Final = 16 << 20
"""Below it an answer's parts take less than they vary by."""


def markdown(record: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [f"Measured on {record['machine']}."]
    for direction in ("push", "answer", "answer without combination") if record["bulk"] else ():
        parts += [f"### {_TITLES[direction]}", _bulk(record["bulk"], direction)]
    if record.get("sustained"):
        parts += ["### Pushes back to back, with Gram rows", _sustained(record["sustained"])]
    if record.get("small"):
        parts += ["### Latency of small pushes", _small(record["small"])]
    return "\n\n".join(parts)


_TITLES: Final = {
    "push": "Push: client's array to accepted in the ring",
    "answer": "Answer: from the question to arrays",
    "answer without combination": "Answer without the combination: from the first bytes to arrays",
}


def _bulk(measured: Sequence[Mapping[str, Any]], direction: str) -> str:
    rows = []
    for case in measured:
        seconds = case["seconds"][direction]
        yardstick = case["seconds"]["answer" if direction.startswith("answer") else "push"]
        reference = np.array(yardstick[YARDSTICK])
        own = yardstick.get("raw socket")
        for name, values in seconds.items():
            if direction.startswith("answer without") and case["bytes"] < _LEAST_SPLIT:
                continue
            rates = [case["bytes"] / 1e9 / value for value in values]
            rows.append(
                [
                    _size(case["bytes"]),
                    _NAMES[case["transport"]],
                    name if name != "raw socket" else f"raw {_NAMES[case['transport']]}",
                    spread(rates),
                    _share(reference, values),
                    _share(np.array(own), values) if own else "",
                    *(_cpu(case, side, name) for side in ("sender", "receiver") if direction == "push"),
                ]
            )
        if _FLIGHT not in yardstick and not direction.startswith("answer without"):
            rows.append(
                [
                    _size(case["bytes"]),
                    _NAMES[case["transport"]],
                    _FLIGHT,
                    FLIGHT_MISSING,
                    *[""] * _MORE[direction],
                ]
            )
    head = ["bytes", "transport", "", "GB/s", "of raw TCP", "of the raw transport"]
    if direction == "push":
        head += ["sender's CPU s/GB", "receiver's"]
    return table(head, rows)


def _cpu(case: Mapping[str, Any], side: str, name: str) -> str:
    """Mean processor time of one side. Unit: seconds per GB."""
    if case["bytes"] < _LEAST_SPLIT:  # the kernel counts a receiver's in steps of 10 ms
        return ""
    seconds = case[f"{side}'s CPU seconds"][name]
    return f"{np.mean(seconds) / case['bytes'] * 1e9:.2f}"


def _share(reference: Any, values: Sequence[float]) -> str:
    """Median of the ratios, round by round."""
    return f"{100 * float(np.median(reference / np.array(values))):.0f} %"


def _sustained(measured: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in measured:
        reference = np.array(case["seconds"][YARDSTICK])
        for name, values in case["seconds"].items():
            rates = [case["bytes"] / 1e9 / value for value in values]
            rows.append([_size(case["bytes"]), name, spread(rates), _share(reference, values)])
    return table(["bytes", "", "GB/s", "of raw TCP"], rows)


def _small(measured: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _size(case["bytes"]),
            _NAMES[case["transport"]],
            name if name != "raw socket" else f"raw {_NAMES[case['transport']]}",
            nice_seconds(found["p50"]),
            nice_seconds(found["p99"]),
            nice_seconds(found["sender's CPU"]),
        ]
        for case in measured
        for name, found in case["seconds"].items()
    ]
    return table(["bytes", "transport", "", "p50", "p99", "sender's CPU"], rows)


def _size(nbytes: int) -> str:
    for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << width:
            return f"{nbytes / (1 << width):g} {unit}"
    return f"{nbytes} B"
