"""Displacements that the background thread brings, one at a time and in time."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from koopcast.hook.asked import Asked
from koopcast.hook.budget import WaitBudget
from koopcast.hook.displacements import Fetch, FetchedDisplacements, HeldDisplacements
from koopcast.hook.stats import Counters
from trainers import displacement_of, prediction, smooth_net


def fetched(seconds: float, act: object) -> tuple[FetchedDisplacements, Counters]:
    counters = Counters()

    def put(fetch: Fetch) -> bool:
        if callable(act):
            act(fetch)
        return act is not None

    return FetchedDisplacements(put, WaitBudget(seconds, counters)), counters


def test_what_comes_in_time_is_handed_over() -> None:
    moves = {"a": torch.ones(3)}
    found, counters = fetched(10.0, lambda fetch: threading.Timer(0.05, fetch.answer, [moves]).start())
    assert found.of(prediction()) is moves
    assert not found.failure
    assert 0.0 < counters.seconds_blocked < 10.0


def test_all_fetches_of_an_attempt_share_its_wait() -> None:
    late: list[Fetch] = []
    found, counters = fetched(0.1, late.append)
    started = time.monotonic()
    for _ in range(5):
        assert found.of(prediction()) is None
    assert time.monotonic() - started < 2.0
    assert found.failure == "no answer in time"
    assert counters.seconds_blocked == pytest.approx(0.1, abs=0.1)
    assert late[0].seconds_left() == 0.0  # nothing more is done for it
    late[0].answer({})
    assert late[0].value is None


def test_a_lost_service_and_a_refusal_say_why() -> None:
    lost, _ = fetched(10.0, None)
    assert lost.of(prediction()) is None
    assert "lost" in lost.failure
    refused, _ = fetched(10.0, lambda fetch: fetch.decline("the window moved"))
    assert refused.of(prediction()) is None
    assert refused.failure == "the window moved"


def test_predictions_that_brought_theirs_need_nobody() -> None:
    model = smooth_net()
    moves = displacement_of(model)
    found = HeldDisplacements().of(prediction(moves))
    assert found is not None
    assert found["0.bias"].data_ptr() == moves["0.bias"].ctypes.data


def test_only_the_first_word_counts() -> None:
    asked: Asked[int] = Asked(10.0)
    asked.answer(1)
    asked.decline("too late")
    asked.answer(2)
    assert asked.wait(0.0) == 1
    assert asked.reason == ""
