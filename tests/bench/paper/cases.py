"""The paper's two cases: run every predictor on every network, print a table each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import classifier
import numpy as np
import oscillator
import textbook
from images import load_images
from networks import Layout
from numpy.typing import NDArray
from oscillator import Recipe
from predictors import Line, Predictor, Service, Snapshots, Stay, Textbook
from scores import HEADER, Score, conditioning, row, score
from timing import Cost, Stopwatch
from trajectories import Span, recorded

import koopcast

__all__ = ["run_classifier", "run_oscillator"]

_LONGEST_WIDE: Final = 1_000
"""Most snapshots for which operators of the classifier's whole layers (15,700 weights) are computed."""


def run_oscillator(
    recipe: Recipe, seeds: int, span: Span, cache: Path, client: koopcast.Client | None
) -> None:
    """Print the tables of the Hamiltonian networks that were trained in one way."""
    run, steps, layout = recorded(recipe, seeds, span, cache), span.ahead, oscillator.LAYOUT
    plain = _plain_oscillator_cost(recipe, steps)
    windows = [np.ascontiguousarray(run[:-steps, seed]) for seed in range(seeds)]
    print(
        f"\n### Oscillator, {recipe.label}: {seeds} networks, t₁ = {span.first:,}, t₂ = {span.last:,}, T = {steps:,}\n\n"
        f"T steps of one network: {plain.wall:.3g} s ({plain.cpu:.3g} s of processor).\n\n{HEADER}"
    )
    for predictor in _predictors(layout, client, len(windows[0])):
        scores = []
        for seed, window in enumerate(windows):
            answer = predictor.predict(window, steps)
            start, true = window[-1].astype(np.float64), run[-1, seed].astype(np.float64)
            before, predicted, trained = oscillator.losses_at(np.stack((start, answer.weights, true)))
            losses = (float(before), float(predicted), float(trained))
            scores.append(score(layout, answer, start, true, losses))
        print(row(predictor.label, scores, plain), flush=True)
    _print_conditioning(layout, windows)


def run_classifier(
    dataset: str, seeds: int, warm_epochs: int, window_epochs: Sequence[int], client: koopcast.Client | None
) -> None:
    """Print the tables of the classifiers trained on one data set, one for each length of the window.

    Every window ends at the same step, after `warm_epochs` epochs and the longest window; T is one epoch.
    """
    images, labels = load_images(dataset)
    scores: dict[tuple[int, str], list[Score]] = {}
    windows: dict[int, Snapshots] = {}
    plain: list[Cost] = []
    steps, longest = classifier.epoch_steps(images), max(window_epochs)
    for seed in range(seeds):
        training = classifier.Training(images, labels, seed)
        training.take(warm_epochs * steps)
        run = training.record((longest + 1) * steps)
        watch = Stopwatch()
        training.take(steps)
        plain.append(watch.lap())
        for epochs in window_epochs:
            part = run[(longest - epochs) * steps :]
            windows.setdefault(epochs, part[:-steps])
            for label, scored in _score_classifier(training, part, client).items():
                scores.setdefault((epochs, label), []).append(scored)
    cost = min(plain, key=lambda each: each.wall)
    for epochs in window_epochs:
        print(
            f"\n### Classifier, {dataset}: {seeds} networks, window of {epochs} of {warm_epochs + longest} "
            f"epochs, T = {steps:,}\n\nT steps of one network: {cost.wall:.3g} s ({cost.cpu:.3g} s of processor).\n\n{HEADER}"
        )
        for (window, label), table in scores.items():
            if window == epochs:
                print(row(label, table, cost), flush=True)
        _print_conditioning(classifier.LAYOUT, [windows[epochs]])


def _score_classifier(
    training: classifier.Training, run: Snapshots, client: koopcast.Client | None
) -> dict[str, Score]:
    """Score every predictor on a run that ends an epoch after the window."""
    steps, layout = classifier.epoch_steps(training.images), classifier.LAYOUT
    window = run[:-steps]
    start, true = window[-1].astype(np.float64), run[-1].astype(np.float64)
    before, trained = training.loss_at(start), training.loss_at(true)
    table = {}
    for predictor in _predictors(layout, client, len(window)):
        answer = predictor.predict(window, steps)
        losses = (before, training.loss_at(answer.weights), trained)
        table[predictor.label] = score(layout, answer, start, true, losses)
    return table


def _predictors(layout: Layout, client: koopcast.Client | None, rows: int) -> list[Predictor]:
    """What is compared, for a window of so many rows."""
    wide = layout.size > _LONGEST_WIDE and rows > _LONGEST_WIDE
    partitions = [name for name in textbook.PARTITIONS if not (wide and name in ("layer", "tensor"))]
    predictors: list[Predictor] = [Stay(), Line(), *(Textbook(layout, name) for name in partitions)]
    if client is not None:
        predictors.append(Service(client, layout, koopcast.Operator(), 12, "koopcast, default"))
    return predictors


def _plain_oscillator_cost(recipe: Recipe, steps: int) -> Cost:
    """What `steps` steps of one network cost, the best of three: a busy machine must not flatter the operators."""
    parameters = oscillator.initial_parameters(range(1))
    plain = recipe.optimizer(parameters)
    costs = []
    for _ in range(3):
        watch = Stopwatch()
        oscillator.train_steps(parameters, plain, steps)
        costs.append(watch.lap())
    return min(costs, key=lambda cost: cost.wall)


def _print_conditioning(layout: Layout, windows: Sequence[NDArray[np.float32]]) -> None:
    """Print how well the paper's operators are conditioned, medians over the windows."""
    print("\n| operator | blocks | condition number, median and largest of the blocks | largest eigenvalue |")
    print("|---|---|---|---|")
    for partition in ("node", "quasi-node", "weight"):
        blocks = textbook.partition_blocks(layout, partition)
        found = [conditioning(window.astype(np.float64), blocks) for window in windows]
        middle, largest, radius = np.median(found, axis=0)
        print(
            f"| paper, {partition} | {len(blocks):,} | {middle:.2g}, {largest:.2g} | {radius:.6f} |",
            flush=True,
        )
