"""Jumps of a training run whose snapshots travel in fewer bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from encoding.paths import some_digits
from encoding.variants import VARIANTS
from koopcast_server.demo.training import BUDGET_STEPS, Recipe, Run, Task, train

__all__ = ["jump_table"]

CASES: dict[str, tuple[float, bool, tuple[float, ...]]] = {
    "momentum": (5e-4, False, (0.2, 0.3, 0.4, 0.5, 0.8)),
    "Adam": (0.0, True, (0.01, 0.02, 0.04, 0.08)),
}
"""The demo's problem and that of `adam.py` on fewer images: penalty, whether Adam, learning rates to choose from."""


PATIENCE_SECONDS = 30.0
"""A busy machine must not change which answers come in time: seconds are not what is compared."""


def jump_table(target: str, seeds: Iterable[int]) -> Iterator[str]:
    """Steps to the plain run's final loss, and what became of the jumps, in every variant, line by line."""
    yield (
        "| optimizer | seed | snapshots, answers | steps to plain's loss | final loss / plain's | jumps | MB sent "
        "| MB received |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, (penalty, adam, rates) in CASES.items():
        task = Task(*some_digits(), penalty)
        for seed in seeds:
            recipes = [Recipe(rate, seed, adam=adam) for rate in rates]
            plain, recipe = min(
                ((train(task, recipe, None, lambda *_: None), recipe) for recipe in recipes),
                key=lambda pair: pair[0].rank_loss,
            )
            for variant in VARIANTS:
                options = {**variant.options, "wait_seconds": PATIENCE_SECONDS}
                run = train(task, recipe, target, lambda *_: None, options)
                yield f"| {name} | {seed} | {variant} | {_cells(plain, run)} |"


def _cells(plain: Run, run: Run) -> str:
    stats = run.stats
    assert stats is not None
    reached = run.first_at(plain.final_loss)
    steps = f"{reached[0]} of {BUDGET_STEPS}" if reached else "never"
    jumps = f"{stats.jumps_proposed} / {stats.jumps_accepted} / {stats.jumps_undone}"
    ratio = run.final_loss / plain.final_loss
    return (
        f"{steps} | {ratio:.2f} | {jumps} | {stats.bytes_sent / 1e6:.1f} | {stats.bytes_received / 1e6:.1f}"
    )
