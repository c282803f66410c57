"""One service and many trainers: its memory, its latencies, its fairness.

    python tests/bench/fleet/run.py [--quick] [--json FILE] [--table]
    python tests/bench/fleet/run.py --only saturation
    python tests/bench/fleet/run.py --from FILE --table

Needs 11 GB of memory; `--quick` much less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fleet import memory
from fleet.saturation import saturated
from fleet.tables import markdown
from recording import MIB, machine, read_record, write_into, write_record

README: Final = Path(__file__).with_name("README.md")
SECTIONS: Final = ("memory", "cancelled", "saturation")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        clients: that push side by side.
        mib: of each of their snapshots.
        rounds: snapshots of each.
        uploads: cancelled ones.
        trainers: at saturation.
        size: parameters of each.
        seconds: of each of the runs at saturation.
        runs: so many.
    """

    clients: int = 8
    mib: int = 256
    rounds: int = 5
    uploads: int = 1000
    trainers: int = 64
    size: int = 1_000_000
    seconds: float = 15.0
    runs: int = 3


QUICK: Final = Extent(mib=32, uploads=200, trainers=16, seconds=8.0, runs=1)


def measure(extent: Extent, sections: Sequence[str]) -> dict[str, Any]:
    """The record."""
    record: dict[str, Any] = {
        "machine": machine("grpcio", "protobuf", "torch", "numpy"),
        "memory": [],
        "cancelled": [],
        "saturation": [],
    }
    if "memory" in sections:
        record["memory"].append(memory.pushed(extent.clients, extent.mib * MIB, extent.rounds))
    if "cancelled" in sections:
        record["cancelled"].append(memory.cancelled(extent.uploads, 16 * MIB, sent=8))
    if "saturation" in sections:
        record["saturation"] += [
            saturated(extent.trainers, extent.size, extent.seconds) for _ in range(extent.runs)
        ]
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read a record; print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: a trial of the command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="measure nothing: read this record"
    )
    parser.add_argument("--table", action="store_true", help="write the tables into README.md")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this part (may be repeated)")
    options = parser.parse_args(arguments)
    record: Mapping[str, Any]
    if options.source is not None:
        record = read_record(options.source)
    else:
        record = measure(QUICK if options.quick else Extent(), options.only or SECTIONS)
        write_record(options.json, record)
    text = markdown(record)
    print(text)
    if options.table:
        write_into(README, "figures", text)


if __name__ == "__main__":
    main()
