"""The paper's two cases: run every predictor on every network, print a table each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import koopcast
from paper import classifier, oscillator, textbook
from paper.engines import koopcast_predictors
from paper.images import load_images
from paper.networks import Layout
from paper.oscillator import Recipe
from paper.predictors import WITHIN, Average, Line, Predictor, Snapshots, Stay, Textbook
from paper.scores import HEADER, Score, conditioning, row, score
from paper.timing import Cost, Stopwatch
from paper.trajectories import Span, recorded

__all__ = ["run_classifier", "run_oscillator"]

_LONGEST_WIDE: Final = 1_000
"""Most snapshots for which operators of the classifier's whole layers (15,700 weights) are computed."""
_PUSHED_WHOLE: Final = 1
"""Networks whose every step is pushed to the service, for the preset: it may take minutes for each."""


Loss = Callable[[NDArray[np.float64]], float]


@dataclass(slots=True)
class Table:
    """The scores of one table, by predictor; each list holds the networks in order.

    Attributes:
        layout: of the flat weights.
        steps: how far ahead is predicted.
        client: of the service; None: none is asked.
        windows: those that are shown in the table of condition numbers.
    """

    layout: Layout
    steps: int
    client: koopcast.Client | None
    windows: list[Snapshots] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    _formulas: dict[str, str] = field(default_factory=dict)

    def add(self, run: Snapshots, loss_at: Loss, network: int) -> None:
        """Score every predictor on one network's run, which ends `steps` rows after the window."""
        window = run[: -self.steps]
        start, true = window[-1].astype(np.float64), run[-1].astype(np.float64)
        before, trained = loss_at(start), loss_at(true)
        for predictor in self._predictors(len(window), loss_at, network):
            answer = predictor.predict(window, self.steps)
            losses = (before, loss_at(answer.weights), trained)
            scored = score(self.layout, answer, start, true, losses)
            self.scores.setdefault(predictor.label, []).append(scored)
            self._formulas[predictor.label] = predictor.formula

    def show(self, title: str, plain: Cost) -> None:
        """Print the table; `plain`: what `steps` optimizer steps of one network cost."""
        print(f"\n### {title}, T = {self.steps:,}\n")
        print(f"T steps of one network: {plain.wall:.3g} s ({plain.cpu:.3g} s of processor).\n\n{HEADER}")
        for label, scores in self.scores.items():
            formula = self._formulas[label]
            print(
                row(label, scores, plain, self.scores.get(formula, ()), self.scores.get(formula + WITHIN, ()))
            )
        _show_choices(self.scores.values(), self.steps)
        print(
            "\n| operator | blocks | condition number, median and largest of the blocks | largest eigenvalue |"
        )
        print("|---|---|---|---|")
        for partition in ("node", "quasi-node", "weight"):
            blocks = textbook.partition_blocks(self.layout, partition)
            found = [conditioning(window.astype(np.float64), blocks) for window in self.windows]
            middle, largest, radius = np.median(found, axis=0)
            print(
                f"| paper, {partition} | {len(blocks):,} | {middle:.2g}, {largest:.2g} | {radius:.6f} |",
                flush=True,
            )

    def _predictors(self, rows: int, loss_at: Loss, network: int) -> Iterable[Predictor]:
        wide = self.layout.size > _LONGEST_WIDE and rows > _LONGEST_WIDE
        partitions = [name for name in textbook.PARTITIONS if not (wide and name in ("layer", "tensor"))]
        yield from (Stay(), Average(2), Average(min(self.steps, rows)), Line())
        yield from (Textbook(self.layout, name) for name in partitions)
        for name in ("node", "quasi-node", "tensor"):
            largest = max(len(block) for block in textbook.partition_blocks(self.layout, name))
            spanned = rows - 1 >= largest
            # The same then, but for rounding; of quasi-nodes that barely move that is much.
            if name in partitions and not (spanned and (self.layout.size <= _LONGEST_WIDE or name == "node")):
                yield Textbook(self.layout, name, within=True)
        yield from koopcast_predictors(
            self.layout,
            self.client,
            rows,
            loss_at,
            ("default", "preset") if network < _PUSHED_WHOLE else ("default",),
        )


def run_oscillator(
    recipe: Recipe, seeds: int, span: Span, cache: Path, client: koopcast.Client | None
) -> dict[str, list[Score]]:
    """Print the tables of the Hamiltonian networks that were trained in one way; return the scores by predictor."""
    run, table = recorded(recipe, seeds, span, cache), Table(oscillator.LAYOUT, span.ahead, client)
    for seed in range(seeds):
        whole = np.ascontiguousarray(run[:, seed])
        table.add(whole, lambda weights: float(oscillator.losses_at(weights[None])[0]), seed)
        table.windows.append(whole[: -span.ahead])
    plain = _plain_oscillator_cost(recipe, span.ahead)
    table.show(
        f"Oscillator, {recipe.label}: {seeds} networks, t₁ = {span.first:,}, t₂ = {span.last:,}", plain
    )
    return table.scores


def run_classifier(
    dataset: str, seeds: int, warm_epochs: int, window_epochs: Sequence[int], client: koopcast.Client | None
) -> None:
    """Print the tables of the classifiers trained on one data set, one for each length of the window.

    Every window ends at the same step, after `warm_epochs` epochs and the longest window; T is one epoch.
    """
    images, labels = load_images(dataset)
    steps, longest = classifier.epoch_steps(images), max(window_epochs)
    tables = {epochs: Table(classifier.LAYOUT, steps, client) for epochs in window_epochs}
    plain: list[Cost] = []
    for seed in range(seeds):
        training = classifier.Training(images, labels, seed)
        training.take(warm_epochs * steps)
        run = training.record((longest + 1) * steps)
        watch = Stopwatch()
        training.take(steps)
        plain.append(watch.lap())
        for epochs, table in tables.items():
            part = run[(longest - epochs) * steps :]
            table.add(part, training.loss_at, seed)
            table.windows = table.windows or [part[:-steps]]
    for epochs, table in tables.items():
        title = (
            f"Classifier, {dataset}: {seeds} networks, window of {epochs} of {warm_epochs + longest} epochs"
        )
        table.show(title, min(plain, key=lambda each: each.wall))


def _show_choices(tables: Iterable[Sequence[Score]], steps: int) -> None:
    """Print how far ahead probes looked."""
    for scores in tables:
        chosen = Counter(each.answer.chosen_steps for each in scores if each.answer.chosen_steps is not None)
        if chosen:
            shares = [f"{share / steps:g} T in {count}" for share, count in sorted(chosen.items())]
            print(f"\nWith a probe, of {len(scores)} networks: {', '.join(shares)}.")


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
