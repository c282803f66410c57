"""`attach` refuses what cannot work before it attaches anything; afterwards it never raises."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import koopcast
from services import free_port
from trainers import smooth_net, train


@pytest.mark.parametrize(
    ("settings", "error", "field"),
    [
        ({"every": 0}, ValueError, "every"),
        ({"every": 2.5}, TypeError, "every"),
        ({"every": True}, TypeError, "every"),
        ({"lag": -1}, ValueError, "lag"),
        ({"wait_seconds": -0.1}, ValueError, "wait_seconds"),
        ({"wait_seconds": float("nan")}, ValueError, "wait_seconds"),
        ({"wait_seconds": "1"}, TypeError, "wait_seconds"),
        ({"average": 1}, TypeError, "average"),
        ({"horizons": []}, ValueError, "horizons"),
        ({"horizons": [10, 0]}, ValueError, "horizons"),
        ({"horizons": [float("inf")]}, ValueError, "horizons"),
        ({"horizons": 10}, TypeError, "horizons"),
        ({"learning_rate": 0.1}, TypeError, "learning_rate"),
        ({"learning_rate": lambda step: -1.0}, ValueError, "learning_rate"),
        ({"operator": "auto"}, TypeError, "operator"),
        ({"operators": []}, ValueError, "operators"),
        ({"operators": [4]}, TypeError, "operators"),
        ({"probe": 3.0}, TypeError, "probe"),
        ({"on_jump": "recalibrate"}, TypeError, "on_jump"),
        ({"filter": "weight"}, TypeError, "filter"),
        ({"filter": lambda name, parameter: False}, ValueError, "filter"),
        ({"job": "no spaces"}, ValueError, "name"),
        ({"target": "nowhere"}, ValueError, "target"),
        ({"target": "example.org:50051"}, ValueError, "ca"),
        ({"token": "a b"}, ValueError, "token"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], error: type[Exception], field: str) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    target = settings.pop("target", f"127.0.0.1:{free_port()}")
    with pytest.raises(error, match=field) as raised:
        koopcast.attach(model, optimizer, target, **settings)
    assert isinstance(raised.value, koopcast.InvalidArgument)
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("model", "optimizer"), [(None, None), (nn.Linear(1, 1), None), (nn.Linear(1, 1), object())]
)
def test_not_a_trainer(model: Any, optimizer: Any) -> None:
    with pytest.raises(koopcast.ArgumentTypeError, match=r"model|optimizer"):
        koopcast.attach(model, optimizer, "127.0.0.1:1")


def test_the_embedded_service_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "koopcast_server.embedding", None)
    model = smooth_net()
    with pytest.raises(koopcast.MissingExtra, match=r"koopcast\[server\]"):
        koopcast.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
