"""The whole table: every task, optimizer, method and seed, and then its page and plots.

    python tests/bench/acceleration/run.py [--workers 2] [--no-timed] [--no-page]
    python tests/bench/acceleration/run.py --tasks henon-heiles char-gpt --optimizers adamw --methods plain ours --seeds 0
    python tests/bench/acceleration/run.py --page     # runs nothing
    python tests/bench/acceleration/run.py --quick    # for breakage: two tasks, a fifth of the steps, nothing is kept

What was run before by the same code is not run again: the command goes on where it stopped, whatever stopped it. Timed
cells come last and alone; nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acceleration.cells import RESULTS, SEEDS, Choice, Results, key_of, plan_cells, read_tuned, untuned
from acceleration.methods import METHODS
from acceleration.plots import draw_all
from acceleration.score import HEADLINE, Plan, scores_of
from acceleration.sources import code_of
from acceleration.tables import PAGE, readme_headline, write_page
from acceleration.workers import Failed, run_cells
from koopcast_server.demo.suite.optimizers import OPTIMIZERS
from koopcast_server.demo.tasks import TASKS
from recording import machine, write_into

TOP_README: Final = Path(__file__).resolve().parents[3] / "README.md"
QUICK: Final = Choice(
    tasks=("hamiltonian-oscillator", "mnist-full"),  # whose data every set-up has
    optimizers=("adamw",),
    seeds=(0, 1),
    budget_share=0.2,
)


@dataclass(frozen=True)
class Places:
    """Where things go.

    Attributes:
        results: folder of the records.
        page: the Markdown page.
        plots: folder of the plots.
        readme: the page whose headline is written, too; None: none is.
    """

    results: Path
    page: Path
    plots: Path
    readme: Path | None


COMMITTED: Final = Places(RESULTS, PAGE, PAGE.parent, TOP_README)


def run_table(choice: Choice, places: Places, workers: int, *, skip_missing: bool = True) -> None:
    """Run what is not done yet; `skip_missing`: tasks whose data are missing are left out, and that is no failure.

    Raises:
        Failed: cells failed, after all others were run.
        KeyboardInterrupt: what is done is kept.
    """
    tuned = read_tuned()
    for lacking in untuned(choice, tuned):
        print(f"not tuned, left out (tune.py): {lacking}", flush=True)
    cells = plan_cells(choice, tuned)
    codes = {key_of(cell): code_of(cell) for cell in cells}
    results = Results(places.results)
    done = results.read(codes)
    waiting = [cell for cell in cells if key_of(cell) not in done]
    print(f"{len(cells)} cells, {len(done)} of them done before", flush=True)
    try:
        run_cells(
            waiting,
            workers,
            lambda cell, record: results.add({**record, "code": codes[key_of(cell)]}),
            skip_missing=skip_missing,
        )
    finally:
        results.compact(codes)


def write_pages(choice: Choice, places: Places) -> None:
    """Write the tables and draw the plots from the records that are current."""
    codes = {key_of(cell): code_of(cell) for cell in plan_cells(choice, read_tuned())}
    records = list(Results(places.results).read(codes).values())
    headline = [name for name in choice.optimizers if name in HEADLINE]
    others = [name for name in choice.optimizers if name not in HEADLINE]
    kinds = {name: TASKS[name].kind for name in choice.tasks}
    plan = Plan(kinds, headline, others, choice.methods, choice.seeds)
    write_page(records, TASKS, plan, machine("torch", "numpy"), places.page)
    drawn = draw_all(records, plan, places.plots)
    readme = places.readme
    if readme is not None and "<!-- acceleration -->" in readme.read_text(encoding="utf-8"):
        write_into(readme, "acceleration", readme_headline(scores_of(records), plan))
    print(f"written: {places.page}, {', '.join(path.name for path in drawn)}", flush=True)


def run_quick(workers: int) -> None:
    """All that the command does, small, in a folder that is gone afterwards.

    Raises:
        Failed: a cell failed, or a task is not tuned.
    """
    if lacking := untuned(QUICK, read_tuned()):
        raise Failed(f"not tuned: {'; '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="koopcast-bench-") as folder:
        places = Places(Path(folder), Path(folder) / "README.md", Path(folder), None)
        run_table(QUICK, places, workers, skip_missing=False)
        write_pages(QUICK, places)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write; the exit status."""
    options = _parser().parse_args(arguments)
    choice = Choice(options.tasks, options.optimizers, options.methods, options.seeds, options.timed)
    try:
        if options.quick:
            run_quick(options.workers)
            return 0
        failure: Failed | None = None
        try:
            if not options.page:
                run_table(choice, COMMITTED, options.workers)
        except Failed as error:
            failure = error
        if options.page is not False:
            write_pages(Choice(), COMMITTED)
        if failure is not None:
            raise failure
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is done is kept", file=sys.stderr, flush=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, known in (("tasks", TASKS), ("optimizers", OPTIMIZERS), ("methods", METHODS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="untimed cells at a time (2)")
    parser.add_argument(
        "--timed", action=argparse.BooleanOptionalAction, default=True, help="timed cells, too"
    )
    parser.add_argument("--quick", action="store_true", help="a trial of the command, three minutes at most")
    parser.add_argument(
        "--page",
        action=argparse.BooleanOptionalAction,
        help="only write page and plots; --no-page: only run; by default first one, then the other",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
