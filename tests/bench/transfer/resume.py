"""A large upload that is cut: what is sent twice, and what the cut costs.

    python tests/bench/transfer/resume.py                     # 2 GiB, cut after 1.5 GiB
    python tests/bench/transfer/resume.py --mebibytes 256 --cuts 3

A real service, and a proxy before it that resets the connection; one push without a cut beside it, in the same run and
through the same proxy. Each push begins a segment, so that the machine needs three times the snapshot's bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

import koopcast
from proxy import Direction, Proxy, proxied
from services import running_service

MIB = 1 << 20


def main() -> None:
    """Runs it and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the snapshot")
    parser.add_argument("--cuts", type=int, default=1, help="how often it is cut, evenly spread")
    options = parser.parse_args()
    weights = {"w": np.random.default_rng(0).standard_normal(options.mebibytes * MIB // 4, dtype=np.float32)}
    with (
        running_service("--memory-limit", f"{6 * options.mebibytes}MiB", "--http", "off") as service,
        proxied(service.target) as proxy,
        koopcast.connect(proxy.target) as client,
    ):
        operator = koopcast.Operator("state", window=2)
        with client.open_job(
            "resume", weights, stride=1, operator=operator, keep_weights=False, shared_memory=False
        ) as job:
            _cut_evenly(proxy, options.mebibytes * MIB, options.cuts)
            cut = timed(job, 0, weights)
            proxy.on_bytes = None
            resent, connections = job.bytes_resent / MIB, proxy.connections
            job.start_segment()
            whole = timed(job, 0, weights)
            figures = {
                "snapshot_mib": options.mebibytes,
                "cuts": options.cuts,
                "connections": connections,
                "resent_mib": resent,
                "seconds_uncut": whole,
                "seconds_cut": cut,
                "snapshots_accepted": job.status().snapshots_accepted,
            }
    print(json.dumps(figures))


def timed(job: koopcast.Job, step: int, weights: dict[str, np.ndarray]) -> float:
    """Seconds until the service has accepted a snapshot."""
    started = time.perf_counter()
    job.push(step, weights, timeout_seconds=900)
    return round(time.perf_counter() - started, 3)


def _cut_evenly(proxy: Proxy, total_bytes: int, cuts: int) -> None:
    """Resets the connection whenever another share of the bytes has passed, of all connections together."""
    marks = [proxy.passed_up + total_bytes * (index + 2) // (cuts + 3) for index in range(cuts)]
    if cuts == 1:
        marks = [proxy.passed_up + total_bytes * 3 // 4]

    def watch(direction: Direction, _passed: int) -> None:
        if direction == "up" and marks and proxy.passed_up >= marks[0]:
            marks.pop(0)
            threading.Thread(target=proxy.cut).start()

    proxy.on_bytes = watch


if __name__ == "__main__":
    main()
