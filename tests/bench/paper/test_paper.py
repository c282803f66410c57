"""That the benchmark of the paper's cases measures what it says."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paper import classifier, oscillator, textbook
from paper.images import FASHION_VARIABLE, ImagesMissing, load_images
from paper.networks import Layout
from paper.plot import draw
from paper.predictors import Answer, Average, Line, Stay, Textbook
from paper.scores import row, score
from paper.timing import Cost
from paper.trajectories import Span, recorded

Array = NDArray[np.float64]
SMALL = Layout((7, 3, 2))


def linear_run(operator: Array, count: int) -> Array:
    rows = [np.random.default_rng(0).standard_normal(len(operator))]
    for _ in range(count - 1):
        rows.append(operator @ rows[-1])
    return np.stack(rows)


# ------------------------------------------------------------------------------------------------ the oscillator


@pytest.mark.parametrize("optimizer", oscillator.OPTIMIZERS)
def test_a_stack_of_networks_trains_as_each_alone(optimizer: str) -> None:
    stacked = oscillator.initial_parameters(range(3))
    alone = oscillator.initial_parameters(range(1, 2))
    for parameters in (stacked, alone):
        oscillator.train_steps(parameters, oscillator.Recipe(optimizer).optimizer(parameters), 5)
    for together, single in zip(stacked, alone, strict=True):
        torch.testing.assert_close(together[1], single[0], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_residual_of_hamiltons_equations() -> None:
    parameters = [part.detach().double() for part in oscillator.initial_parameters(range(2))]
    weight_1, bias_1, weight_2, bias_2, weight_3, bias_3 = (part[1] for part in parameters)

    def solution(time: torch.Tensor) -> torch.Tensor:
        hidden = torch.sin(weight_2 @ torch.sin(weight_1[:, 0] * time + bias_1) + bias_2)
        start = torch.tensor([1.3, 1.0], dtype=torch.float64)
        return start + (1.0 - torch.exp(-time)) * (weight_3 @ hidden + bias_3)

    total = 0.0
    for time in torch.linspace(0.0, 4.0 * torch.pi, 200, dtype=torch.float64).unbind():
        time.requires_grad_()
        x, p = solution(time).unbind()
        (velocity,) = torch.autograd.grad(x, time, retain_graph=True)
        (force,) = torch.autograd.grad(p, time)
        total += float(((velocity - p) ** 2 + (force + x + x**3) ** 2).detach()) / 200
    assert float(oscillator.losses(parameters)[1]) == pytest.approx(total, rel=1e-10)
    flat = np.concatenate([part.reshape(2, -1).numpy() for part in parameters], axis=1)
    assert oscillator.losses_at(flat)[1] == pytest.approx(total, rel=1e-10)


def test_runs_are_recorded_step_by_step_and_kept(tmp_path: Path) -> None:
    span, recipe = Span(3, 6, 2), oscillator.Recipe("adam", 0.002)
    run = recorded(recipe, 2, span, tmp_path)
    assert run.shape == (6, 2, 152)
    parameters = oscillator.initial_parameters(range(2))
    oscillator.train_steps(parameters, recipe.optimizer(parameters), 5)
    flat = torch.cat([part.detach().flatten(1) for part in parameters], dim=1)
    np.testing.assert_array_equal(run[5 - span.first], flat.numpy())
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(recorded(recipe, 2, span, tmp_path), run)
    assert path.stat().st_mtime_ns == written


# -------------------------------------------------------------------------------------------- textbook operators


@pytest.mark.parametrize("count", [5, 40], ids=["shorter than the block", "longer than the block"])
def test_the_operator_is_the_papers_formula(count: int) -> None:
    snapshots = np.random.default_rng(1).standard_normal((count, 8))
    inputs, outputs = snapshots[:-1].T, snapshots[1:].T
    whole = np.linalg.matrix_power(outputs @ np.linalg.pinv(inputs), 6) @ snapshots[-1]
    operator = textbook.BlockOperator.fit(snapshots)
    np.testing.assert_allclose(operator.predict(snapshots[-1], 6), whole, rtol=1e-9)
    expected = np.abs(np.linalg.eigvals(outputs @ np.linalg.pinv(inputs))).max()
    assert operator.spectral_radius() == pytest.approx(expected, rel=1e-9)
    assert operator.condition == pytest.approx(np.linalg.cond(inputs), rel=1e-9)


@pytest.mark.parametrize("partition", textbook.PARTITIONS)
def test_a_linear_system_of_blocks_is_predicted_exactly(partition: str) -> None:
    blocks = textbook.partition_blocks(SMALL, partition, quasi_inputs=3)
    true = np.zeros((SMALL.size, SMALL.size))
    random = np.random.default_rng(2)
    for block in blocks:
        turn, _ = np.linalg.qr(random.standard_normal((len(block), len(block))))
        true[np.ix_(block, block)] = 0.99 * turn
    run = linear_run(true, 60)
    np.testing.assert_allclose(textbook.predict(run[:50], blocks, 10), run[-1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("partition", "sizes"),
    [
        ("node", [8] * 3 + [4] * 2),
        ("quasi-node", [5, 3] * 3 + [4] * 2),
        ("layer", [24, 8]),
        ("tensor", [21, 3, 6, 2]),
        ("weight", [1] * 32),
    ],
)
def test_every_element_is_in_one_block(partition: str, sizes: list[int]) -> None:
    blocks = textbook.partition_blocks(SMALL, partition)
    assert [len(block) for block in blocks] == sizes
    assert sorted(np.concatenate(blocks)) == list(range(SMALL.size))


def test_a_node_is_a_row_and_its_bias() -> None:
    assert textbook.partition_blocks(SMALL, "node")[1].tolist() == [7, 8, 9, 10, 11, 12, 13, 22]


@pytest.mark.parametrize("count", [5, 40], ids=["shorter than the block", "longer than the block"])
def test_what_the_snapshots_do_not_span_stays_or_goes_to_zero(count: int) -> None:
    snapshots = np.random.default_rng(1).standard_normal((count, 8))
    inputs, last = snapshots[:-1].T, snapshots[-1]
    inside = inputs @ np.linalg.pinv(inputs)
    operator = textbook.BlockOperator.fit(snapshots)
    projected = inside @ snapshots[1:].T @ np.linalg.pinv(inputs)
    true = np.linalg.matrix_power(projected, 6) @ last + last - inside @ last
    np.testing.assert_allclose(operator.predict_within(last, 6), true, rtol=1e-9, atol=1e-12)
    same = np.allclose(operator.predict_within(last, 6), operator.predict(last, 6))
    assert same == (count == 40)


def test_constant_weights_stay_and_zeros_stay_zero() -> None:
    window = np.tile(np.arange(SMALL.size, dtype=np.float64), (6, 1))
    for partition in textbook.PARTITIONS:
        blocks = textbook.partition_blocks(SMALL, partition)
        np.testing.assert_allclose(textbook.predict(window, blocks, 1_000), window[-1], rtol=1e-9, atol=1e-9)


def test_what_overflows_is_not_finite_and_warns_nobody() -> None:
    snapshots = 3.0 ** np.arange(6.0)[:, None]
    assert not np.isfinite(textbook.BlockOperator.fit(snapshots).predict(snapshots[-1], 100_000)).all()
    assert not np.isfinite(textbook.predict(snapshots, [np.array([0])], 100_000)).all()


# -------------------------------------------------------------------------------------------- the rest of the way


def test_a_line_is_carried_on_and_persistence_stays() -> None:
    window = np.linspace(0.0, 1.0, 11, dtype=np.float32)[:, None] * np.ones(SMALL.size, np.float32)
    np.testing.assert_allclose(Line().predict(window, 5).weights, 1.5, rtol=1e-6)
    np.testing.assert_allclose(Line().predict(window, 50).weights, 6.0, rtol=1e-6)
    np.testing.assert_allclose(Average(3).predict(window, 5).weights, 0.9, rtol=1e-6)
    np.testing.assert_array_equal(Stay().predict(window, 5).weights, window[-1])
    assert Textbook(SMALL, "weight").predict(window, 1).cost.wall > 0.0


def test_the_plot_is_drawn_where_a_loss_is_missing_too(tmp_path: Path) -> None:
    start, true = np.zeros(SMALL.size), np.ones(SMALL.size)
    found = [
        score(SMALL, Answer(true, Cost(1.0, 1.0)), start, true, (3.0, loss, 1.0))
        for loss in (2.0, np.nan, 4.0)
    ]
    draw({"adam": {"weights stay": found, "paper, node": found}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def scored(weights: Array, losses: tuple[float, float, float]) -> tuple[float, bool, bool, str]:
    start, true = np.zeros(SMALL.size), np.ones(SMALL.size)
    answer = Answer(weights, Cost(1.0, 0.5), Cost(0.2, 0.1))
    result = score(SMALL, answer, start, true, losses)
    table = row("x", [result, result], Cost(10.0, 10.0), [result])
    return result.relative_error, result.raised, result.beats_training, table


def test_scores_are_relative_to_the_distance_moved() -> None:
    error, raised, beats, table = scored(np.full(SMALL.size, 0.75), (3.0, 2.0, 1.0))
    assert error == pytest.approx(0.25)
    assert (raised, beats) == (False, False)
    assert table == (
        "| x | 0.25 (0.25 … 0.25) | 0.25 / 0.25 | 3 → 2 (1) | 0 of 2 | 0 of 2 "
        "| 1 (0.5) + 0.2 (0.1) for the pushes | 10 (20) | 0 |"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_what_overflowed_counts_as_raised(bad: float) -> None:
    weights = np.ones(SMALL.size)
    weights[3] = bad
    error, raised, beats, table = scored(weights, (3.0, np.nan, 1.0))
    assert error > 1e100
    assert (raised, beats) == (True, False)
    assert "→ overflow" in table
    assert table.endswith("| overflow |") or np.isfinite(bad)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_is_found_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FASHION_VARIABLE, str(tmp_path))
    with pytest.raises(ImagesMissing, match="apt-get install dataset-fashion-mnist"):
        load_images("fashion")
    pixels = np.random.default_rng(0).integers(0, 256, (130, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(130, dtype=np.uint8) % 10)
    images, labels = load_images("fashion")
    np.testing.assert_array_equal(images.numpy(), pixels.reshape(130, 784).astype(np.float32) / 255.0)
    assert labels.tolist() == [number % 10 for number in range(130)]
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])))
    with pytest.raises(ImagesMissing, match="1 elements"):
        load_images("fashion")


def test_a_classifiers_run_repeats_and_learns() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(130) % 10
    images = 0.1 * torch.rand((130, 784), generator=random)
    for digit in range(10):
        images[digit::10, 20 * digit : 20 * digit + 20] = 1.0
    assert classifier.epoch_steps(images) == 3
    runs = [classifier.Training(images, labels, seed).record(60) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    training = classifier.Training(images, labels, 0)
    assert training.loss_at(runs[0][-1]) < 0.7 * training.loss_at(runs[0][0])
    assert np.isnan(training.loss_at(np.full(classifier.LAYOUT.size, 1e60)))
