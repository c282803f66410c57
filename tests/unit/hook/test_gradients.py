"""Probes whose gradients are looked at: which ones have one, and that looking leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopcast.hook.displacements import HeldDisplacements
from koopcast.hook.gradients import GradientEvaluator, GradientTrial, assign, flat, gradient_of_step, shown
from koopcast.hook.stats import Counters
from trainers import bits, displacement_of, loss_of, prediction, smooth_net, train, weights


class Run:
    """A net in the middle of its training, and trials on it that want gradients."""

    def __init__(self, probe: Callable[[nn.Module], Any] = loss_of) -> None:
        self.model = smooth_net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        train(self.model, self.optimizer, 2)
        self.parameters = dict(self.model.named_parameters())
        self.counters = Counters()
        self.evaluator = GradientEvaluator(self.model, lambda: probe(self.model), None, self.counters)
        self.evaluator.parameters = lambda: list(self.parameters.values())
        self.evaluator.wanted = True
        self.evaluator.gradient = None

    def trial(self) -> GradientTrial:
        return GradientTrial(self.evaluator, self.optimizer, self.parameters, HeldDisplacements())

    def gradient(self) -> Tensor:
        """The true one, at the present weights."""
        return flat(torch.autograd.grad(loss_of(self.model), list(self.parameters.values())))


def test_loss_and_gradient_come_of_one_evaluation() -> None:
    run = Run()
    before, expected = bits(run.model, run.optimizer), run.gradient()
    gradients = [parameter.grad for parameter in run.parameters.values()]
    trial = run.trial()
    loss = trial.loss_now()
    assert trial.now is not None
    assert trial.now.loss == loss == loss_of(run.model).item()
    torch.testing.assert_close(trial.now.gradient, expected, rtol=0, atol=0)
    assert torch.equal(trial.now.weights, weights(run.model))
    assert run.counters.probe_evaluations == 1
    assert bits(run.model, run.optimizer) == before
    assert all(p.grad is g for p, g in zip(run.parameters.values(), gradients, strict=True))


def backward_itself(model: nn.Module) -> Tensor:
    loss = loss_of(model)
    torch.autograd.backward(loss)
    return loss


def without_graph(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return loss_of(model)


def holding_others(model: nn.Module) -> Tensor:
    return loss_of(model).detach() + torch.ones((), requires_grad=True) * 0.0


@pytest.mark.parametrize(
    "probe",
    [lambda model: loss_of(model).item(), without_graph, backward_itself, lambda _: math.nan],
    ids=["float", "no-grad", "backward", "nan"],
)
def test_probes_without_a_gradient_give_their_loss_all_the_same(probe: Callable[[nn.Module], Any]) -> None:
    run = Run(probe)
    before = bits(run.model, run.optimizer)
    trial = run.trial()
    loss = trial.loss_now()
    expected = probe(run.model)
    assert loss == pytest.approx(float(torch.as_tensor(expected).detach()), nan_ok=True)
    assert trial.now is None
    assert trial.at(weights(run.model) + 1.0) is None
    assert bits(run.model, run.optimizer) == before


def test_a_graph_that_leads_elsewhere_has_a_gradient_of_zero() -> None:
    run = Run(holding_others)
    trial = run.trial()
    trial.loss_now()
    assert trial.now is not None
    assert not trial.now.gradient.any()


def test_parameters_without_part_in_the_loss_have_a_gradient_of_zero() -> None:
    run = Run(lambda model: model.get_parameter("0.bias").square().sum())
    run.parameters["2.bias"].requires_grad_(False)
    trial = run.trial()
    trial.loss_now()
    assert trial.now is not None
    parts = dict(
        zip(
            run.parameters,
            torch.split(trial.now.gradient, [p.numel() for p in run.parameters.values()]),
            strict=True,
        )
    )
    torch.testing.assert_close(parts.pop("0.bias"), 2.0 * run.parameters["0.bias"].detach())
    assert not any(part.any() for part in parts.values())


def test_gradients_that_nobody_wants_are_not_made() -> None:
    backwards = 0

    def probe(model: nn.Module) -> Tensor:
        loss = loss_of(model)

        def note(_: Tensor) -> None:
            nonlocal backwards
            backwards += 1

        loss.register_hook(note)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    run = Run(probe)
    run.evaluator.wanted = False
    trial = run.trial()
    trial.loss_now()
    assert (trial.now, backwards) == (None, 0)
    run.evaluator.wanted = True
    trial.loss_now()
    assert trial.now is not None
    assert backwards == 1


def test_a_probe_that_raises_leaves_no_older_gradient() -> None:
    calls = 0

    def probe(model: nn.Module) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError
        return loss_of(model)

    run = Run(probe)
    trial = run.trial()
    trial.loss_now()
    assert trial.at(weights(run.model)) is None
    assert trial.at(weights(run.model)) is not None


def test_points_elsewhere_leave_no_trace() -> None:
    run = Run()
    before, there = bits(run.model, run.optimizer), weights(run.model) + 0.1
    point = run.trial().at(there)
    assert point is not None
    assert bits(run.model, run.optimizer) == before
    assign(run.parameters, there)
    assert point.loss == loss_of(run.model).item()
    torch.testing.assert_close(point.gradient, run.gradient(), rtol=0, atol=0)


def test_where_the_best_candidate_landed_is_remembered() -> None:
    run = Run()
    start, expected = weights(run.model), {}
    trial = run.trial()
    trial.loss_now()
    for size in (1e-4, 1e-5, 1e-3):
        candidate = prediction(displacement_of(run.model, -size))
        expected[trial.evaluate(candidate)] = start + flat(
            [torch.from_numpy(part) for part in candidate.displacement.values()]
        )
    assert trial.landed is not None
    assert trial.landed.loss == min(expected)
    torch.testing.assert_close(trial.landed.weights, expected[min(expected)])
    assert trial.reach > 0.0


@pytest.mark.parametrize(
    "types",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float16), (torch.float64, torch.float32)],
    ids=["float32", "half", "mixed"],
)
def test_flat_and_assign_are_inverse(types: tuple[torch.dtype, ...]) -> None:
    shapes = [(3, 2), (), (0,), (5,)]
    tensors = {
        str(index): torch.randn(shape).to(types[index % 2]).requires_grad_()
        for index, shape in enumerate(shapes)
    }
    told = flat(list(tensors.values()))
    assert told.shape == (12,)
    assert told.dtype == (torch.float64 if torch.float64 in types else torch.float32)
    assert not told.requires_grad
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    assign(tensors, torch.zeros_like(told))
    assert not any(tensor.any() for tensor in tensors.values())
    assert told.any()  # a copy
    assign(tensors, told)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_columns_first_or_rows_first_is_all_one() -> None:
    tensors = {"turned": torch.arange(6.0).reshape(2, 3).T}
    told = flat(list(tensors.values()))
    assign(tensors, told + 1.0)
    assert torch.equal(tensors["turned"], torch.arange(1.0, 7.0).reshape(2, 3).T)


def test_the_gradient_of_a_step() -> None:
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
    assert gradient_of_step(parameters) is None
    parameters[1].grad = torch.arange(3.0)
    found = gradient_of_step(parameters)
    assert found is not None
    assert torch.equal(found, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]))
    found.zero_()
    assert parameters[1].grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_moved_to(bad: float) -> None:
    run = Run()
    before = bits(run.model, run.optimizer)
    there = weights(run.model)
    there[3] = bad
    assert not run.trial().place(there)
    assert bits(run.model, run.optimizer) == before
    assert run.trial().place(torch.zeros_like(there))
    assert not weights(run.model).any()


def test_shown_weights_are_gone_afterwards() -> None:
    run = Run()
    before = bits(run.model, run.optimizer)

    def show() -> None:
        with shown(run.model, run.parameters, torch.zeros_like(weights(run.model))):
            assert not weights(run.model).any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show()
    assert bits(run.model, run.optimizer) == before
