"""Which prediction the hook jumps to: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import pytest

from koopcast.hook.policy import ascending, choose_by_backtest, choose_by_loss, exhaustive
from koopcast.prediction import Prediction
from trainers import block, prediction


def losses(
    table: dict[tuple[int, float], float], seen: list[tuple[int, float]]
) -> Callable[[Prediction], float]:
    def evaluate(candidate: Prediction) -> float:
        seen.append((candidate.operator_index, candidate.steps))
        return table[seen[-1]]

    return evaluate


CANDIDATES = [prediction(steps=h, operator_index=i) for i in (0, 1) for h in (10.0, 20.0, 40.0)]


def test_the_lowest_loss_wins_and_every_candidate_is_probed() -> None:
    seen: list[tuple[int, float]] = []
    table = {
        (0, 10.0): 0.9,
        (0, 20.0): 0.7,
        (0, 40.0): 2.0,
        (1, 10.0): 0.8,
        (1, 20.0): 0.6,
        (1, 40.0): math.nan,
    }
    choice = choose_by_loss(CANDIDATES, 1.0, losses(table, seen), exhaustive)
    assert choice.accepted
    assert choice.prediction is CANDIDATES[4]
    assert (choice.loss_before, choice.loss_after) == (1.0, 0.6)
    assert seen == [(candidate.operator_index, candidate.steps) for candidate in CANDIDATES]


@pytest.mark.parametrize("loss", [1.0, 1.5, math.inf, math.nan])
def test_a_loss_that_is_not_lower_is_refused(loss: float) -> None:
    choice = choose_by_loss(CANDIDATES[:1], 1.0, lambda candidate: loss)
    assert not choice.accepted


def test_a_candidate_whose_probe_failed_does_not_hide_a_good_one() -> None:
    choice = choose_by_loss(CANDIDATES[:2], 1.0, losses({(0, 10.0): math.nan, (0, 20.0): 0.5}, []))
    assert choice.accepted
    assert choice.prediction is CANDIDATES[1]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_nothing_is_probed_where_the_present_loss_is_not_finite(loss: float) -> None:
    seen: list[tuple[int, float]] = []
    choice = choose_by_loss(CANDIDATES, loss, losses({}, seen))
    assert not choice.accepted
    assert not seen


def test_ascending_stops_where_the_loss_rises() -> None:
    seen: list[tuple[int, float]] = []
    table = {(0, 10.0): 0.9, (0, 20.0): 1.2, (1, 10.0): 0.8, (1, 20.0): 0.7, (1, 40.0): 0.75}
    choice = choose_by_loss(CANDIDATES, 1.0, losses(table, seen), ascending)
    assert seen == [(0, 10.0), (0, 20.0), (1, 10.0), (1, 20.0), (1, 40.0)]
    assert choice.prediction is CANDIDATES[4]


def test_a_search_order_of_ones_own_is_sent_the_losses() -> None:
    received = []

    def first_two(predictions: Sequence[Prediction], loss_now: float) -> Generator[Prediction, float, None]:
        received.append(loss_now)
        for candidate in predictions[:2]:
            received.append((yield candidate))  # noqa: PERF401

    choice = choose_by_loss(CANDIDATES, 1.0, losses({(0, 10.0): 0.9, (0, 20.0): 0.8}, []), first_two)
    assert received == [1.0, 0.9, 0.8]
    assert choice.prediction is CANDIDATES[1]


def test_without_a_probe_the_longest_backtested_horizon_is_taken() -> None:
    short = prediction(steps=10, blocks=(block(error=0.01),))
    long = prediction(steps=30, blocks=(block(error=0.2),))
    better = prediction(steps=30, operator_index=1, blocks=(block(error=0.1),))
    choice = choose_by_backtest([short, long, better])
    assert choice.accepted
    assert choice.prediction is better
    assert choice.loss_before is choice.loss_after is None


@pytest.mark.parametrize(
    "untrusted",
    [
        prediction(steps=31, blocks=(block(backtest_steps=30),)),
        prediction(steps=30, blocks=(block(extrapolated=True),)),
        prediction(steps=10, blocks=(block(error=1.0, linear=2.0),)),
        prediction(steps=10, blocks=(block(error=0.5, linear=0.5),)),
        prediction(steps=10, blocks=(block(error=math.nan, linear=math.nan),)),
        prediction(steps=10, blocks=(block(), block(error=0.6, linear=0.5))),
        prediction(steps=10, blocks=(block(moved=False),)),
    ],
    ids=["beyond", "extrapolated", "persistence", "linear", "no back-test", "one bad block", "nothing moved"],
)
def test_without_a_probe_nothing_untrusted_is_taken(untrusted: Prediction) -> None:
    assert not choose_by_backtest([untrusted]).accepted


def test_a_block_that_stays_needs_no_trust() -> None:
    mixed = prediction(steps=10, blocks=(block(), block(error=3.0, moved=False)))
    assert choose_by_backtest([mixed]).accepted
