"""What becomes of an optimizer's state at a jump."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopcast.hook.optimizer_state import adjust, gradient_ratio
from trainers import loss_of, smooth_net, train

LAZY: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"fused": True, "amsgrad": True}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        (4.0, 1.0, 0.5),
        (1.0, 4.0, 1.0),
        (None, 1.0, 1.0),
        (1.0, None, 1.0),
        (0.0, 1.0, 1.0),
        (-1.0, -2.0, 1.0),
        (math.nan, 1.0, 1.0),
        (1.0, 0.0, 1.0),
    ],
)
def test_gradients_go_with_the_root_of_the_loss(
    before: float | None, after: float | None, ratio: float
) -> None:
    assert gradient_ratio(before, after) == ratio


@pytest.mark.parametrize(("kind", "settings"), LAZY, ids=[k.__name__ for k, _ in LAZY])
def test_reset_is_a_fresh_start(kind: Any, settings: dict[str, Any]) -> None:
    model = smooth_net()
    optimizer = kind(model.parameters(), **settings)
    train(model, optimizer, 4)
    adjust(optimizer, model.parameters(), "reset", 0.5)
    fresh_model = smooth_net()
    fresh_model.load_state_dict(model.state_dict())
    fresh = kind(fresh_model.parameters(), **settings)
    train(model, optimizer, 3)
    train(fresh_model, fresh, 3)
    for ours, theirs in zip(model.parameters(), fresh_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "settings"), LAZY, ids=[k.__name__ for k, _ in LAZY])
def test_rescaled_state_is_that_of_smaller_gradients(kind: Any, settings: dict[str, Any]) -> None:
    """Of gradients of half the size, all along: what depends on their size is halved or quartered, the rest the same."""
    states = []
    for size in (1.0, 0.5):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.ones(4, 3))
        options = {name: value for name, value in settings.items() if name != "initial_accumulator_value"}
        optimizer = kind(
            [parameter], **{**options, **({"eps": 1e-30} if kind is torch.optim.Adadelta else {})}
        )
        for _ in range(3):
            parameter.grad = size * torch.randn(4, 3)
            optimizer.step()
        if size == 1.0:
            adjust(optimizer, [parameter], "rescale", 0.5)
        states.append({name: v for name, v in optimizer.state[parameter].items() if isinstance(v, Tensor)})
    rescaled, smaller = states
    for name, value in smaller.items():
        if name in ("ax", "step_size", "acc_delta"):
            continue  # of weights or of updates, not of gradients
        torch.testing.assert_close(rescaled[name], value, rtol=1e-4, atol=1e-12, msg=name)


def test_keep_touches_nothing_and_others_stay() -> None:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 2)
    first, *others = model.parameters()
    before = {id(p): optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    adjust(optimizer, model.parameters(), "keep", 0.1)
    adjust(optimizer, [first], "reset", 0.1)
    assert first not in optimizer.state
    assert all(torch.equal(optimizer.state[p]["exp_avg"], before[id(p)]) for p in others)


@pytest.mark.parametrize("policy", ["reset", "rescale"])
def test_lbfgs_forgets_its_history(policy: Any) -> None:
    model = smooth_net()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model)
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)
    assert optimizer.state
    adjust(optimizer, [], policy, 0.5)
    assert not optimizer.state
    optimizer.step(closure)


class Eager(torch.optim.Optimizer):
    """Somebody's optimizer, which makes its state when it is made."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"velocity": torch.zeros_like(parameter), "step": 0}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody gives one
        with torch.no_grad():
            for parameter, state in self.state.items():
                state["step"] += 1
                state["velocity"].mul_(0.9).add_(parameter.grad)
                parameter.sub_(state["velocity"], alpha=0.1)


def test_the_state_of_other_optimizers_is_zeroed_in_place() -> None:
    model = smooth_net()
    optimizer = Eager(model.parameters())
    train(model, optimizer, 3)
    adjust(optimizer, model.parameters(), "reset", 0.5)
    assert all(state["step"] == 0 and not state["velocity"].any() for state in optimizer.state.values())
    train(model, optimizer, 1)
