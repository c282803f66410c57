"""Questions between the threads, and the checks an answer must pass before it comes near the weights."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import koopcast
from koopcast.hook.question import Question, check_answer, check_displacement
from trainers import prediction

SPECS = {"a": koopcast.TensorSpec("float32", (2, 3)), "b": koopcast.TensorSpec("float32", (4,))}


def question(seconds: float = 10.0) -> Question:
    return Question(100, 100, [10.0, 20.0], [koopcast.Operator()], seconds)


def answer(**changes: Any) -> list[koopcast.Prediction]:
    displacement = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
    settings = {"displacement": displacement, **changes}
    return [prediction(steps=10.0, **settings), prediction(steps=20.0, **settings)]


def test_a_good_answer_passes() -> None:
    good = answer()
    assert check_answer(good, question(), segment=1) is good
    displacement = good[0].displacement
    checked = check_displacement(displacement, SPECS)
    assert all(checked[name] is displacement[name] for name in SPECS)


@pytest.mark.parametrize(
    "bad",
    [
        answer()[::-1],
        answer()[:1],
        answer(operator_index=1),
        answer(segment=2),
        answer(base_step=90),
        answer(from_step=110),
    ],
    ids=["order", "short", "operator", "segment", "base", "from"],
)
def test_an_answer_to_anything_else_is_refused(bad: list[koopcast.Prediction]) -> None:
    with pytest.raises(koopcast.InternalError):
        check_answer(bad, question(), segment=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"a": np.ones((2, 3), np.float32)},
        {"b": np.ones(4, np.float32), "a": np.ones((2, 3), np.float32)},
        {"a": np.ones((3, 2), np.float32), "b": np.ones(4, np.float32)},
        {"a": np.ones((2, 3), np.float32), "b": np.array([1, 1, np.nan, 1], np.float32)},
        {"a": np.ones((2, 3), np.float32), "b": np.array([1, np.inf, -np.inf, 1], np.float32)},
        {"a": np.ones((2, 3), np.float32), "b": np.array([1, 1, 1, -np.inf], np.float32)},
    ],
    ids=["missing", "order", "shape", "nan", "infs", "inf"],
)
def test_a_displacement_of_anything_else_is_refused(bad: dict[str, np.ndarray[Any, Any]]) -> None:
    with pytest.raises(koopcast.InternalError):
        check_displacement(bad, SPECS)


def test_waiting_ends_with_the_answer() -> None:
    asked = question()
    threading.Timer(0.05, asked.answer, [answer()]).start()
    started = time.monotonic()
    asked.wait(5.0)
    assert time.monotonic() - started < 2.0
    assert len(asked.predictions) == 2


def test_a_later_answer_is_let_go() -> None:
    asked = question()
    asked.wait(0.01)
    asked.answer(answer())
    assert not asked.predictions
    assert asked.reason == "no answer in time"
    assert asked.seconds_left() <= 0


def test_read_only_arrays_are_copied() -> None:
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    checked = check_displacement({"a": np.ones((2, 3), np.float32), "b": frozen}, SPECS)
    assert checked["b"].flags.writeable
    assert checked["b"].tolist() == frozen.tolist()


def test_displacements_come_with_the_answer_only_where_the_window_may_move_on() -> None:
    assert question().one_by_one
    assert not Question(100, 103, [10.0], [koopcast.Operator()], 1.0).one_by_one
