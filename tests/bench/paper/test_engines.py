"""That koopcast's rows of the paper's cases are the operators that they say."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import koopcast
from paper import oscillator, textbook
from paper.engines import OPERATORS, Direct, Sampling, Service, koopcast_predictors
from paper.networks import Layout
from paper.predictors import Textbook

Array = NDArray[np.float64]


def recorded_window(steps: int) -> NDArray[np.float32]:
    parameters = oscillator.initial_parameters(range(1))
    optimizer = oscillator.Recipe("adagrad").optimizer(parameters)
    rows = []
    for _ in range(steps + 1):
        rows.append(torch.cat([part.detach().flatten() for part in parameters]).numpy())
        oscillator.train_steps(parameters, optimizer, 1)
    return np.stack(rows)


def oscillator_loss(weights: Array) -> float:
    return float(oscillator.losses_at(weights[None])[0])


def relative_difference(ours: Array, theirs: Array, start: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start))


def test_the_preset_agrees_with_the_papers_formula_with_a_service_and_without() -> None:
    layout, window, ahead = oscillator.LAYOUT, recorded_window(100), 10
    with koopcast.connect() as client:
        predictors = koopcast_predictors(layout, client, len(window), oscillator_loss, OPERATORS)
        answers = {each.label: each.predict(window, ahead).weights for each in predictors}
    assert len(answers) == 11
    for ours, theirs in (("quasi-nodes of 5", "quasi-node"), ("weights", "weight")):
        true = Textbook(layout, theirs).predict(window, ahead).weights
        for how in ("service", "functions alone"):
            assert relative_difference(answers[f"koopcast, {ours}, {how}"], true, window[-1]) < 1e-4
    for name in ("default", "preset", "tensors"):
        alone, served = (answers[f"koopcast, {name}, {how}"] for how in ("functions alone", "service"))
        np.testing.assert_array_equal(alone, served)


def test_with_few_snapshots_the_preset_leaves_what_they_do_not_span() -> None:
    layout, window = oscillator.LAYOUT, recorded_window(8)[::4]
    preset = koopcast_predictors(layout, None, len(window), oscillator_loss, ())[1]
    assert preset.label == "koopcast, preset, functions alone"
    ours = preset.predict(window, 1).weights
    within, formula = (
        Textbook(layout, "node", within=within).predict(window, 1).weights for within in (True, False)
    )
    assert relative_difference(ours, within, window[-1]) < 1e-4
    assert relative_difference(ours, formula, window[-1]) > 1e-2


def exact_prediction(snapshots: NDArray[np.float32], steps: int) -> Array:
    """``U^steps`` of the last row, in fractions: rows of (snapshots, size) of full rank."""
    rows = [[Fraction(float(value)) for value in row] for row in snapshots]
    size, pairs = len(rows[0]), list(itertools.pairwise(rows))
    # Gauss-Jordan on [F Fᵀ | F F′ᵀ] leaves Uᵀ on the right.
    table = [
        [sum((x[i] * x[j] for x, _ in pairs), Fraction()) for j in range(size)]
        + [sum((x[i] * y[j] for x, y in pairs), Fraction()) for j in range(size)]
        for i in range(size)
    ]
    for pivot in range(size):
        table[pivot] = [value / table[pivot][pivot] for value in table[pivot]]
        for other in set(range(size)) - {pivot}:
            factor = table[other][pivot]
            table[other] = [a - factor * b for a, b in zip(table[other], table[pivot], strict=True)]
    last = rows[-1]
    for _ in range(steps):
        last = [sum((table[i][size + j] * last[i] for i in range(size)), Fraction()) for j in range(size)]
    return np.array([float(value) for value in last])


def test_of_weights_that_rarely_move_the_preset_is_nearer_to_the_truth_than_the_formula_in_float64() -> None:
    random, window = np.random.default_rng(1), np.zeros((120, 5))
    for index, moves in enumerate((0, 3, 3, 30, 100)):
        at = random.choice(np.arange(1, 119), moves, replace=False)
        window[at, index] = 1e-8 * 30.0 ** (index - 1) * random.standard_normal(moves)
    snapshots = (0.03 * random.standard_normal(5) + window.cumsum(axis=0)).astype(np.float32)
    true = exact_prediction(snapshots, 40)
    preset = koopcast.Operator.preset("dogra-redman")
    ours = Direct(Layout((4, 1)), preset, "", len(snapshots)).predict(snapshots, 40).weights
    formula = textbook.predict(snapshots.astype(np.float64), [np.arange(5)], 40)
    assert relative_difference(ours, true, snapshots[-1]) < 1e-5
    assert relative_difference(formula, true, snapshots[-1]) > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_probe_takes_the_horizon_of_the_lowest_loss_or_stays(share: float) -> None:
    layout, window, ahead = oscillator.LAYOUT, recorded_window(40), 8
    operator = koopcast.Operator()
    with koopcast.connect() as client:
        wanted = window[-1].astype(np.float64)
        if share:
            there = Service(client, layout, operator, "", operator.snapshots_wanted)
            wanted = there.predict(window, round(share * ahead)).weights

        def distance(weights: Array) -> float:
            return float(np.linalg.norm(weights - wanted))

        probed = Service(client, layout, operator, "", operator.snapshots_wanted, probe=distance)
        answer = probed.predict(window, ahead)
    assert answer.chosen_steps == share * ahead
    np.testing.assert_allclose(answer.weights, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "snapshots", "chosen"), [(10_001, 12, (1, 909)), (5, 5, (0, 1)), (4, 9, (0, 1))]
)
def test_snapshots_are_evenly_spaced_and_end_with_the_last(
    rows: int, snapshots: int, chosen: tuple[int, int]
) -> None:
    numbers = Sampling(rows, snapshots).chosen
    assert (numbers[0], numbers[1] - numbers[0]) == chosen
    assert numbers[-1] == rows - 1
    assert len(numbers) == min(rows, snapshots)
