"""How fast the engine is, how that grows, and what memory it takes beside its window, as Markdown tables.

    python tests/bench/engine/run.py [--quick] [--large] [--plot tests/bench/engine-growth.png]

Times are medians; ratios are of times of this run. `--large` adds 10⁸ parameters, which need 9 GB of memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import growth, growth_plot, memory, nodes, versus_pydmd
from engine.measuring import machine

SECTIONS: Final = ("bandwidth", "pydmd", "nodes", "growth", "memory")
_EVERYTHING: Final = 1 << 30
_LARGE: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        threads: on each of the sides that are compared.
        rounds: times that a measurement is repeated.
        elements: n of the comparison with PyDMD.
        alone: n that the engine is measured at without PyDMD.
        looped: nodes of each matrix that PyDMD is looped over.
        grid: of the growth.
        memory: cases.
        bandwidth: arguments of `window.py`.
    """

    threads: tuple[int, ...]
    rounds: int
    elements: tuple[int, ...]
    alone: tuple[int, ...]
    looped: int
    grid: growth.Grid
    memory: tuple[memory.Case, ...]
    bandwidth: tuple[str, ...]


def extent(*, quick: bool, large: bool) -> Extent:
    """What the options ask for."""
    if quick:
        grid = growth.Grid((10_000, 100_000, 1_000_000), (4, 16, 64), (1, 30, 1_000), 100_000)
        cases = (memory.Case(1, 1_000_000), memory.Case(1_000, 10))
        return Extent((1,), 1, (100_000,), (), 20, grid, cases, ("--repeats", "1"))
    most = (_LARGE,) if large else ()
    return Extent(
        threads=(1, 2),
        rounds=3,
        elements=(1_000_000, 10_000_000),
        alone=most,
        looped=_EVERYTHING,
        grid=growth.Grid(
            elements=(10_000, 100_000, 1_000_000, 10_000_000, *most),
            windows=(4, 8, 16, 32, 64),
            blocks=(1, 10, 100, 1_000, 10_000, 100_000),
            fixed=1_000_000,
        ),
        memory=(
            *(memory.Case(1, size) for size in (1_000_000, 10_000_000, *most)),
            memory.Case(1, 10_000_000, "state"),
            memory.Case(100_000, 10),
            memory.Case(100_000, 20),
        ),
        bandwidth=(),
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, once, one thread, no bandwidth: a trial of the command",
    )
    parser.add_argument("--large", action="store_true", help="10⁸ parameters, too")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section (may be repeated)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the growth there")
    return parser.parse_args()


def sections(chosen: Extent, names: tuple[str, ...], plot: Path | None) -> Iterator[tuple[str, str]]:
    """(title, text), each measured when it is asked for."""
    most = max(chosen.threads)
    if "bandwidth" in names:
        yield "Window: bandwidth", bandwidth(chosen.bandwidth)
    if "pydmd" in names:
        yield (
            f"One block, {versus_pydmd.LENGTH} snapshots, float32, against PyDMD",
            versus_pydmd.compare(chosen.elements, chosen.alone, chosen.threads, chosen.rounds),
        )
    if "nodes" in names:
        yield (
            f"Nodes of a {'-'.join(map(str, nodes.WIDTHS))} network, {nodes.LENGTH} snapshots",
            nodes.compare(chosen.threads, chosen.rounds, chosen.looped),
        )
    if "growth" in names:
        sweeps = growth.measure(chosen.grid, most, 2 * chosen.rounds + 1)
        if plot is not None:
            growth_plot.draw(sweeps, plot)
        yield f"Growth, {most} threads", "\n\n".join(growth.tell(sweep) for sweep in sweeps)
    if "memory" in names:
        yield f"Memory beside the window, {memory.LENGTH} snapshots", memory.measure(chosen.memory, most)


def bandwidth(arguments: tuple[str, ...]) -> str:
    """What `window.py` prints."""
    command = [sys.executable, str(Path(__file__).with_name("window.py")), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure, and print the tables."""
    arguments = parse_arguments()
    names = tuple(arguments.only or (SECTIONS[1:] if arguments.quick else SECTIONS))
    print(f"Measured on {machine()}.", flush=True)
    chosen = extent(quick=arguments.quick, large=arguments.large)
    for title, text in sections(chosen, names, arguments.plot):
        print(f"\n### {title}\n\n{text}", flush=True)


if __name__ == "__main__":
    main()
