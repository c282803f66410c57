"""A schedule that the hook is told of: predictions are made on its clock, through a real service."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import koopcast
from services import RunningService
from trainers import loss_of, smooth_net

STEPS = 90


def test_predictions_are_asked_for_on_the_clock_of_the_schedule(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    asked: list[dict[str, Any]] = []
    predict_ahead = koopcast.Job.predict_ahead

    def noted(job: koopcast.Job, *arguments: Any, **options: Any) -> Any:
        asked.append({"horizons": arguments[0], **options})
        return predict_ahead(job, *arguments, **options)

    monkeypatch.setattr(koopcast.Job, "predict_ahead", noted)
    rates = []
    with koopcast.attach(
        model,
        optimizer,
        service.target,
        probe=lambda: loss_of(model),
        every=3,
        operator=koopcast.Operator(window=8),
        horizons=[6, 30],
        learning_rate=schedule,
        wait_seconds=10.0,
    ) as ahead:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        stats = ahead.stats()
    assert stats.service_errors == 0
    assert stats.jumps_proposed > 0
    first = asked[0]
    begin = first["from_step"]
    assert first["from_clock"] == pytest.approx(sum(rates[:begin]))
    for horizon, interval in zip(first["horizons"], first["clock_intervals"], strict=True):
        assert interval == pytest.approx(sum(rates[begin : begin + int(horizon)]))
