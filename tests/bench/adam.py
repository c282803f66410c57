"""The demo's task with Adam and without the penalty: plain training against the same with koopcast, over a grid.

    python tests/bench/adam.py [--seeds 0 1 2]

Without a penalty the loss goes to zero as the network's outputs grow: a harder case for jumps than the demo's.
"""

from __future__ import annotations

import argparse
import os

import torch

import koopcast
from koopcast_server.demo.data import load_digits
from koopcast_server.demo.training import BUDGET_STEPS, Recipe, Run, Task, train

LEARNING_RATES = (0.01, 0.02, 0.04, 0.08)


def line(seed: int, plain: Run, jumped: Run) -> str:
    """One row of the table."""
    reached = jumped.first_at(plain.final_loss)
    ratio = f"{BUDGET_STEPS / reached[0]:.2f}" if reached else "never"
    stats = jumped.stats
    assert stats is not None
    jumps = f"{stats.jumps_proposed} / {stats.jumps_accepted} / {stats.jumps_undone}"
    losses = f"{plain.final_loss:.2e} | {jumped.final_loss:.2e}"
    return f"| {seed} | {plain.learning_rate} | {losses} | {ratio} | {jumps} |"


def main() -> None:
    """Runs the benchmark; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    task = Task(*load_digits(), penalty=0.0)
    print(
        "| seed | best rate | plain loss | loss with koopcast | ratio | jumps proposed / accepted / undone |"
    )
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        runs = [train(task, Recipe(rate, seed, adam=True), None, lambda *_: None) for rate in LEARNING_RATES]
        plain = min(runs, key=lambda run: run.rank_loss)
        with koopcast.connect() as client:
            recipe = Recipe(plain.learning_rate, seed, adam=True)
            print(line(seed, plain, train(task, recipe, client.target, lambda *_: None)), flush=True)


if __name__ == "__main__":
    main()
