"""The average that is evaluated: its formula, where it is used, and that nothing of it stays in the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from koopcast.hook.averaging import FEWEST_STEPS, EvaluationAverage, decay_at
from koopcast.hook.selection import Selection
from trainers import NoisyNet, bits, data, loss_of, seed_all, smooth_net, weights


def nothing() -> None:
    """No copies are under way."""


def average_of(model: nn.Module, *, noisy: bool | None = True) -> EvaluationAverage:
    average = EvaluationAverage(model, Selection(model, None, averaged=False))
    average.noisy = noisy
    return average


def walk(model: nn.Module, average: EvaluationAverage, count: int, rate: float | None = 0.1) -> None:
    """Move the weights at random, with a look of the average after each step."""
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        average.step(rate)


@contextmanager
def shown(average: EvaluationAverage, held: Callable[[], None] = nothing) -> Iterator[bool]:
    before = average.show(held)
    try:
        yield before is not None
    finally:
        if before is not None:
            average.hide(before, held)


class Half(nn.Module):
    """A parameter in bfloat16 and one in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.long = nn.Parameter(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("count", [FEWEST_STEPS, 63, 65, 303])
def test_the_average_is_that_of_the_formula(count: int) -> None:
    torch.manual_seed(count)
    model = nn.Linear(2, 1, bias=False)
    average = average_of(model)
    expected = torch.zeros(2, dtype=torch.float64)
    for step in range(1, count + 1):
        walk(model, average, 1)
        if step == 1:
            expected = weights(model).double()
        elif step % 4 == 0:
            decay = min(0.97, (1 + step) / (10 + step)) ** 4
            expected = decay * expected + (1 - decay) * weights(model)
    with shown(average) as used:
        assert used
        torch.testing.assert_close(weights(model), expected.float(), rtol=1e-5, atol=1e-6)


def test_late_the_past_weighs_as_much_as_33_steps() -> None:
    assert [decay_at(steps) for steps in (0, 8, 10_000)] == [0.1, 0.5, 0.97]


def test_noise_goes_out_of_the_average() -> None:
    torch.manual_seed(0)
    model = nn.Linear(50, 20, bias=False)
    average = average_of(model)
    for _ in range(400):
        with torch.no_grad():
            model.weight.normal_()
        average.step(0.1)
    with shown(average):
        assert weights(model).std() < 0.3


def test_all_bits_come_back_also_those_that_evaluation_changed() -> None:
    seed_all()
    model = NoisyNet()
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    model.register_buffer("halves", torch.ones(2, dtype=torch.float16))
    average = average_of(model)
    for _ in range(40):
        loss_of(model)
        walk(model, average, 1)
    before = bits(model)
    gradients = [parameter.grad for parameter in model.parameters()]
    with shown(average) as used:
        assert used
        inside = bits(model)
        model(data()[0])  # in training mode: BatchNorm's statistics move
        assert model.calls == 41
    assert bits(model) == before
    assert [parameter.grad for parameter in model.parameters()] == gradients
    changed = {name for name, value in inside.items() if value != before[name]}
    assert {"first.weight", "last.bias", "norm.running_mean", "norm.running_var"} <= changed
    assert not changed & {"mask", "halves", "calls", "scale", "norm.num_batches_tracked"}


def test_a_graph_that_is_alive_stays_valid() -> None:
    model = smooth_net()
    average = average_of(model)
    walk(model, average, 40)
    expected = torch.autograd.grad(loss_of(model), list(model.parameters()))
    loss = loss_of(model)
    with shown(average), torch.no_grad():
        loss_of(model)
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode: Callable[[], torch.no_grad]) -> None:
    model = smooth_net()
    average = average_of(model)
    walk(model, average, 40)
    before = bits(model)
    with mode(), shown(average) as used:
        assert used
        loss_of(model)
    assert bits(model) == before
    torch.autograd.backward(loss_of(model))


def test_half_precision_is_averaged_in_float32() -> None:
    model = Half()
    average = average_of(model)
    for step in range(400):
        with torch.no_grad():
            model.short.fill_(1.0 + 2.0**-7 * (step % 8 == 3))  # at each second update: half of a last place
        average.step(0.1)
    assert average._averages["short"].dtype == torch.float32
    assert 1.0 + 2.0**-9 < float(average._averages["short"][0]) < 1.0 + 2.0**-7
    assert average._averages["long"].dtype == torch.float64
    with shown(average):
        assert model.short.dtype == torch.bfloat16


def test_it_is_not_used_where_it_does_not_help() -> None:
    model = smooth_net()
    average = average_of(model, noisy=None)
    walk(model, average, 100)
    assert not average.helps
    assert not average._averages  # no memory before it is known to help
    average.noisy = True
    walk(model, average, FEWEST_STEPS - 1)
    assert not average.helps
    walk(model, average, 1)
    assert average.helps
    walk(model, average, 1, rate=0.026)
    assert average.helps
    walk(model, average, 1, rate=0.024)
    assert not average.helps
    walk(model, average, 1, rate=None)
    assert average.helps
    average.noisy = False
    assert not average.helps
    walk(model, average, 1)
    assert not average._averages


def test_after_a_jump_it_begins_where_that_landed() -> None:
    model = smooth_net()
    average = average_of(model)
    walk(model, average, 200)
    average.begin()
    assert not average.helps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    for _ in range(FEWEST_STEPS):
        average.step(0.1)
    with shown(average) as used:
        assert used
        assert weights(model).tolist() == [7.0] * weights(model).numel()


def test_replaced_parameters_end_it_and_replaced_buffers_have_none() -> None:
    model = NoisyNet()
    average = average_of(model)
    walk(model, average, 40)
    model.norm.running_mean = torch.full((16,), 3.0)
    with shown(average) as used:
        assert used
        assert model.norm.running_mean.tolist() == [3.0] * 16
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with shown(average) as used:
        assert not used
    walk(model, average, FEWEST_STEPS)
    assert average.helps


def test_an_average_that_is_not_finite_is_not_shown() -> None:
    model = smooth_net()
    average = average_of(model)
    with torch.no_grad():
        model.get_parameter("0.bias")[0] = torch.nan
    walk(model, average, 40)
    with shown(average) as used:
        assert not used


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_leaves_the_weights_and_warns_once(
    caplog: pytest.LogCaptureFixture, *, strict: bool
) -> None:
    model = smooth_net()
    average = EvaluationAverage(model, Selection(model, None, averaged=False), strict=strict)
    average.noisy = True
    walk(model, average, 40)
    before = bits(model)

    def fail() -> None:
        raise RuntimeError("out of memory")

    with caplog.at_level(logging.WARNING, logger="koopcast"):
        if strict:
            with pytest.raises(RuntimeError, match="out of memory"):
                average.show(fail)
        else:
            assert average.show(fail) is None
            assert average.show(fail) is None
            assert len(caplog.records) == 1
    assert bits(model) == before
    walk(model, average, 40)
    assert not average.helps
