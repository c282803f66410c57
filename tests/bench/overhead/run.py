"""What a training loop feels of the hook: time and memory, for models of 0.1M, 10M and 100M parameters.

    python tests/bench/overhead/run.py [--quick] [--json FILE] [--table]
    python tests/bench/overhead/run.py --only time --model 10M
    python tests/bench/overhead/run.py --from FILE --table

The trainer is pinned to core 0 (one torch thread), the service to core 1; plain runs are pinned alike and alternate with
those that have the hook. Needs two cores that nobody else uses, and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from overhead import trainer
from overhead.tables import markdown
from overhead.trainer import Setting
from recording import machine, read_record, write_into, write_record
from services import running_service

README: Final = Path(__file__).with_name("README.md")
SECTIONS: Final = ("time", "memory")
_TRAINER_CORE, _SERVICE_CORE = 0, 1
_LIMIT_SECONDS: Final = 1800


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        repeats: pairs of a plain run and one with the hook, for each setting.
        timed: settings that are timed; their modes are filled in.
        narrow: settings that send more than any link takes.
        weighed: settings whose memory is measured.
    """

    repeats: int
    timed: tuple[Setting, ...]
    narrow: tuple[Setting, ...]
    weighed: tuple[Setting, ...]


FULL: Final = Extent(
    repeats=7,
    timed=(
        Setting("0.1M", 256, 1500),
        Setting("0.1M", 2048, 300),
        Setting("10M", 128, 80, window=4),
        Setting("10M", 512, 50, window=4),
        Setting("100M", 64, 50, window=4),
        Setting("100M", 256, 50, window=4),
    ),
    narrow=(Setting("10M", 4, 200, every=1), Setting("100M", 1, 40, every=1)),
    weighed=tuple(
        Setting(
            model,
            4,
            20,
            "jump",
            optimizer=name,
            every=2,
            window=4,
            average=average,
            weigh=True,
            wait_seconds=20.0,
        )
        for model, name, average in (
            ("30M", "sgd", False),
            ("30M", "momentum", False),
            ("30M", "adam", False),
            ("30M", "momentum", True),
            ("100M", "momentum", False),
        )
    ),
)
QUICK: Final = Extent(
    repeats=2,
    timed=(Setting("0.1M", 256, 300), Setting("10M", 64, 30)),
    narrow=(Setting("10M", 4, 60, every=1),),
    weighed=(
        Setting("10M", 4, 26, "jump", optimizer="sgd", every=2, window=4, weigh=True, wait_seconds=20.0),
    ),
)


def measure(extent: Extent, sections: Sequence[str]) -> dict[str, Any]:
    """The record."""
    record: dict[str, Any] = {
        "machine": machine("torch", "grpcio", "numpy"),
        "time": [],
        "narrow": [],
        "memory": [],
    }
    with pinned_service() as target:
        if "time" in sections:
            for setting in extent.timed:
                record["time"].append(
                    _compared(replace(setting, target=target), extent.repeats, ("observe", "jump"))
                )
            for setting in extent.narrow:
                record["narrow"].append(
                    _compared(replace(setting, target=target), extent.repeats, ("observe",))
                )
        if "memory" in sections:
            for setting in extent.weighed:
                found = _trained(replace(setting, target=target))
                record["memory"].append({"setting": dataclasses.asdict(setting), **found})
    return record


def _compared(setting: Setting, repeats: int, modes: Sequence[str]) -> dict[str, Any]:
    """Plain runs and others in turn, in an order that changes sides; a list of runs for each mode."""
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in ("plain", *modes)}
    for repeat in range(repeats):
        order = list(runs) if repeat % 2 else list(reversed(runs))
        for mode in order:
            runs[mode].append(_trained(replace(setting, mode=mode)))
    print(f"{setting.model}, batch {setting.batch}: done", file=sys.stderr, flush=True)
    return {"setting": dataclasses.asdict(setting), "runs": runs}


def _trained(setting: Setting) -> dict[str, Any]:
    """One run in a process of its own."""
    process = subprocess.run(
        [
            sys.executable,
            str(Path(trainer.__file__)),
            json.dumps(dataclasses.asdict(replace(setting, core=_TRAINER_CORE))),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=_LIMIT_SECONDS,
    )
    found: dict[str, Any] = json.loads(process.stdout)
    return found


@contextlib.contextmanager
def pinned_service() -> Iterator[str]:
    """A service whose threads all stay on their core; gives its target."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_SERVICE_CORE})  # inherited
    try:
        with running_service("--memory-limit", "8GiB") as service:
            os.sched_setaffinity(0, before)
            yield service.target
    finally:
        os.sched_setaffinity(0, before)


def _chosen(extent: Extent, models: Sequence[str] | None) -> Extent:
    def kept(settings: Sequence[Setting]) -> tuple[Setting, ...]:
        return tuple(setting for setting in settings if not models or setting.model in models)

    return replace(extent, timed=kept(extent.timed), narrow=kept(extent.narrow), weighed=kept(extent.weighed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read a record; print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small models, few steps: a trial of the command"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="measure nothing: read this record"
    )
    parser.add_argument("--table", action="store_true", help="write the tables into README.md")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this part (may be repeated)")
    parser.add_argument(
        "--model", choices=trainer.WIDTHS, action="append", help="only this one (may be repeated)"
    )
    parser.add_argument("--repeats", type=int, help="pairs of runs")
    options = parser.parse_args(arguments)
    record: Mapping[str, Any]
    if options.source is not None:
        record = read_record(options.source)
    else:
        extent = _chosen(QUICK if options.quick else FULL, options.model)
        record = measure(replace(extent, repeats=options.repeats or extent.repeats), options.only or SECTIONS)
        write_record(options.json, record)
    text = markdown(record)
    print(text)
    if options.table:
        write_into(README, "figures", text)


if __name__ == "__main__":
    main()
