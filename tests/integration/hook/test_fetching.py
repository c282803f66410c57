"""A service that goes away while candidates are looked at: the attempt ends in time, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import pytest
import torch

import koopcast
from koopcast.hook.policy import exhaustive
from koopcast.prediction import Prediction
from services import RunningService, running_service
from trainers import LinearTraining, settled, weights

WINDOW, EVERY = 4, 5
WAIT_SECONDS = 0.5
SMALL = koopcast.Operator(window=WINDOW, rank=2)


def attempted(
    service: RunningService, act: Callable[[], object], at_probe: int, *, probe_says: float
) -> tuple[LinearTraining, koopcast.hook.Stats, int]:
    """One attempt on four horizons, with something happening to the service at one of its probes.

    Returns:
        the training, what was counted, and the probes of the attempt.
    """
    run = LinearTraining()
    probes = -1  # one comes before the attempt, at the first snapshot

    def probe() -> float:
        nonlocal probes
        probes += 1
        if probes == at_probe:
            act()
        return 1.0 if probes <= 1 else probe_says + 0.01 * probes

    with koopcast.attach(
        run.model, run.optimizer, service.target, probe=probe, every=EVERY, operator=SMALL, watch=False,
        horizons=[5, 10, 20, 40], search=exhaustive, wait_seconds=WAIT_SECONDS,
    ) as ahead:  # fmt: skip
        for step in run.train(WINDOW * EVERY):
            if step % EVERY == 0 and step < WINDOW * EVERY:
                settled(ahead, step // EVERY)
        stats = ahead.stats()
    return run, stats, probes


@pytest.mark.parametrize("end", ["pause", "kill"])
def test_a_service_that_goes_away_before_the_first_candidate(end: str) -> None:
    plain = LinearTraining()
    for _ in plain.train(WINDOW * EVERY):
        pass
    with running_service("--http", "off") as service:
        run, stats, probes = attempted(service, getattr(service, end), 1, probe_says=0.1)
        service.resume()
        assert probes == 1  # of the weights as they are; no candidate ever came
        assert torch.equal(weights(run.model), weights(plain.model))
        assert (stats.jumps_accepted, stats.jumps_rejected) == (0, 1)
        assert stats.seconds_blocked < 2 * WAIT_SECONDS + 1.0
        assert "no candidate has a finite loss (" in stats.last_decision


@pytest.mark.parametrize("end", ["pause", "kill"])
def test_what_was_probed_before_can_still_be_jumped_to(end: str) -> None:
    plain = LinearTraining()
    for _ in plain.train(WINDOW * EVERY + 5):
        pass
    with running_service("--http", "off") as service:
        run, stats, probes = attempted(service, getattr(service, end), 2, probe_says=0.1)
        service.resume()
        assert probes == 2
        assert stats.jumps_accepted == 1
        assert stats.log[0].horizon == 5
        torch.testing.assert_close(weights(run.model), weights(plain.model), rtol=0, atol=1e-6)
        assert stats.seconds_blocked < 2 * WAIT_SECONDS + 1.0


def first_two(predictions: Sequence[Prediction], loss_now: float) -> Generator[Prediction, float, None]:
    for candidate in predictions[:2]:  # noqa: UP028  # a list takes no `send`
        yield candidate


def test_candidates_are_fetched_only_when_they_are_looked_at(service: RunningService) -> None:
    run = LinearTraining()
    with koopcast.attach(
        run.model, run.optimizer, service.target, probe=run.distance, every=EVERY, operator=SMALL, watch=False,
        horizons=[5, 10, 20, 40, 80], search=first_two, refine=0, wait_seconds=10.0,
    ) as ahead:  # fmt: skip
        for _ in run.train(WINDOW * EVERY):
            pass
        stats = ahead.stats()
    assert stats.jumps_accepted == 1
    assert stats.bytes_received == 2 * stats.snapshot_bytes
