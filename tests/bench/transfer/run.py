"""Pushes and answers end to end, beside raw sockets, a plain protobuf stream and PyArrow Flight in the same run.

    python tests/bench/transfer/run.py [--quick] [--json FILE] [--table]
    python tests/bench/transfer/run.py --only bulk --mib 256 --transport tcp
    python tests/bench/transfer/run.py --from FILE --table

`--table` writes the tables into README.md beside this file. Needs 12 GB of free memory; `--quick` much less. Where
PyArrow is not installed its rows say so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from credentials import make_credentials
from recording import MIB, machine, read_record, write_into, write_record
from transfer.contenders import TRANSPORTS, Transport, flight_is_installed
from transfer.measure import Workplace, bulk, small, sustained
from transfer.tables import markdown

README: Final = Path(__file__).with_name("README.md")
SECTIONS: Final = ("bulk", "sustained", "small")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        sizes: bytes of an array.
        transports: of the bulk measurement.
        rounds: times each turn is repeated.
        sections: which measurements are made.
        few: sizes whose latency is measured.
        count: pushes of each.
        lasting: bytes of the pushes back to back.
        pushes: so many of them in a row.
    """

    sizes: tuple[int, ...] = (MIB, 16 * MIB, 256 * MIB, 1024 * MIB)
    transports: tuple[Transport, ...] = TRANSPORTS
    rounds: int = 7
    sections: tuple[str, ...] = SECTIONS
    few: tuple[int, ...] = (4 << 10, 400 << 10, MIB)
    count: int = 500
    lasting: int = 256 * MIB
    pushes: int = 8


QUICK: Final = Extent(
    sizes=(MIB, 16 * MIB, 128 * MIB),
    rounds=5,
    few=(4 << 10, 400 << 10, MIB),
    count=100,
    lasting=64 * MIB,
    pushes=4,
)


def measure(extent: Extent, directory: Path) -> dict[str, Any]:
    """The record."""
    make_credentials(directory)
    workplace = Workplace(directory, extent.rounds, ("--memory-limit", "20GiB"))
    packages = ["grpcio", "protobuf", "numpy", *(["pyarrow"] if flight_is_installed() else [])]
    record: dict[str, Any] = {"machine": machine(*packages), "bulk": [], "small": [], "sustained": []}
    for nbytes in extent.sizes if "bulk" in extent.sections else ():
        for transport in extent.transports:
            record["bulk"].append(bulk(workplace, transport, nbytes))
            _tell(f"{nbytes / MIB:g} MiB over {transport}: done")
    if "sustained" in extent.sections:
        record["sustained"].append(sustained(workplace, extent.lasting, (3, 12), extent.pushes))
        _tell("pushes back to back: done")
    for nbytes in extent.few if "small" in extent.sections else ():
        for transport in extent.transports:
            record["small"].append(small(workplace, transport, nbytes, extent.count))
    return record


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read a record; print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller arrays, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="measure nothing: read this record"
    )
    parser.add_argument("--table", action="store_true", help="write the tables into README.md")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this part (may be repeated)")
    parser.add_argument("--mib", type=int, action="append", help="arrays of so many MiB (may be repeated)")
    parser.add_argument(
        "--transport", choices=TRANSPORTS, action="append", help="only this one (may be repeated)"
    )
    options = parser.parse_args(arguments)
    extent = QUICK if options.quick else Extent()
    extent = replace(
        extent,
        sections=tuple(options.only or SECTIONS),
        sizes=tuple(size * MIB for size in options.mib or ()) or extent.sizes,
        transports=tuple(options.transport or TRANSPORTS),
    )
    if options.source is not None:
        record = read_record(options.source)
    else:
        with tempfile.TemporaryDirectory(prefix="koopcast-bench-") as directory:
            record = measure(extent, Path(directory))
        write_record(options.json, record)
    text = markdown(record)
    print(text)
    if options.table:
        write_into(README, "figures", text)


if __name__ == "__main__":
    main()
