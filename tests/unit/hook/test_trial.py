"""Trying a jump on a live model leaves no trace, whatever the probe does; an accepted one leaves only itself."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from koopcast.hook.displacements import HeldDisplacements
from koopcast.hook.memory import Arena
from koopcast.hook.stats import Counters
from koopcast.hook.trial import Evaluator, OnJump, Probe, Trial
from trainers import NoisyNet, bits, displacement_of, loss_of, prediction, random_numbers, seed_all, train


class Run:
    """A trained net in the middle of its training, with gradients left from the last step, one of them None."""

    def __init__(self) -> None:
        seed_all()
        self.model = NoisyNet()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        train(self.model, self.optimizer, 3)
        self.model.norm.eval()  # a mode that is not the root's
        self.model.first.bias.grad = None

    def trial(
        self, probe: Probe | None = None, on_jump: OnJump | None = None, arena: Arena | None = None
    ) -> Trial:
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        evaluator = Evaluator(self.model, probe, on_jump, Counters())
        return Trial(evaluator, self.optimizer, parameters, HeldDisplacements(), arena)

    def state(self) -> list[Any]:
        """All that must not change, random states last."""
        gradients = [
            None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
            for p in self.model.parameters()
        ]
        identities = [
            (id(t), t.data_ptr(), t.requires_grad) for t in [*self.model.parameters(), *self.model.buffers()]
        ]
        modes = [module.training for module in self.model.modules()]
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        generators = (
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tobytes(),  # noqa: NPY002
            torch.get_rng_state().numpy().tobytes(),
        )
        return [bits(self.model, self.optimizer), gradients, identities, modes, groups, generators]


def backward_and_step(run: Run) -> float:
    loss = loss_of(run.model)
    torch.autograd.backward(loss)
    run.optimizer.step()
    return float(loss)


def every_generator(run: Run) -> float:
    return sum(random_numbers())


def modes_and_gradients(run: Run) -> float:
    run.model.eval()
    run.optimizer.zero_grad(set_to_none=False)
    run.model.last.weight.requires_grad_(False)
    run.model.scale.requires_grad_(True)
    return 0.0


def optimizer_in_place(run: Run) -> float:
    entry = run.optimizer.state[run.model.first.weight]
    entry["exp_avg"].zero_()
    entry.clear()
    run.optimizer.param_groups[0]["lr"] = 0.5
    run.optimizer.param_groups.append({})
    return 0.0


def optimizer_reloaded(run: Run) -> float:
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    return 0.0


def other_parameters(run: Run) -> float:
    run.model.first.weight.data = torch.zeros(16, 8)
    run.model.last.weight = nn.Parameter(torch.zeros(1, 16))
    run.model.norm.running_mean = torch.ones(16)
    run.model.register_buffer("another", torch.ones(1))
    del run.model.second.bias
    return 0.0


def failing(run: Run) -> float:
    backward_and_step(run)
    raise RuntimeError("no loss today")


def statistics(run: Run) -> torch.Tensor:
    mean = run.model.norm.running_mean
    assert mean is not None
    return mean


def optimizer_bits(state: list[Any]) -> dict[str, bytes]:
    entries = {name: value for name, value in state[0].items() if name[0].isdigit()}
    assert entries
    return entries


PROBES = [
    lambda run: loss_of(run.model), backward_and_step, every_generator, modes_and_gradients, optimizer_in_place,
    optimizer_reloaded, other_parameters, failing,
]  # fmt: skip


@pytest.mark.parametrize("probe", PROBES, ids=[getattr(p, "__name__", "") for p in PROBES])
def test_a_probe_leaves_no_trace(probe: Callable[[Run], float]) -> None:
    run = Run()
    before = run.state()
    trial = run.trial(lambda: probe(run))
    for evaluate in (trial.loss_now, lambda: trial.evaluate(prediction(displacement_of(run.model)))):
        evaluate()
        assert run.state() == before


def test_training_goes_on_as_if_nothing_had_been_tried() -> None:
    plain, tried = Run(), Run()
    for run in (plain, tried):
        seed_all(5)
        if run is tried:
            trial = run.trial(lambda: backward_and_step(tried))
            trial.loss_now()
            trial.evaluate(prediction(displacement_of(run.model)))
        train(run.model, run.optimizer, 5)
    assert bits(tried.model, tried.optimizer) == bits(plain.model, plain.optimizer)


def test_an_interrupt_during_the_probe_restores_first() -> None:
    run = Run()
    before = run.state()

    def interrupted() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.trial(interrupted).evaluate(prediction(displacement_of(run.model)))
    assert run.state() == before


def test_a_graph_made_before_the_trial_is_still_good() -> None:
    run = Run()
    loss = loss_of(run.model.eval())
    run.trial(lambda: loss_of(run.model)).evaluate(prediction(displacement_of(run.model)))
    torch.autograd.backward(loss)


def test_the_probe_sees_the_translated_weights_gradients_and_the_mode_as_found() -> None:
    run = Run()
    before = run.model.first.weight.detach().clone()
    moved = prediction(displacement_of(run.model))

    def probe() -> torch.Tensor:
        assert torch.is_grad_enabled()
        assert run.model.training
        assert not run.model.norm.training
        assert torch.equal(
            run.model.first.weight, before + torch.from_numpy(moved.displacement["first.weight"])
        )
        return torch.tensor(0.25)

    with torch.no_grad():
        assert run.trial(probe).evaluate(moved) == 0.25


def test_every_candidate_sees_the_same_random_numbers() -> None:
    run = Run()
    trial = run.trial(lambda: every_generator(run))
    loss = trial.loss_now()
    assert loss == trial.evaluate(prediction(displacement_of(run.model))) == trial.loss_now()


def test_an_accepted_jump_leaves_weights_and_what_on_jump_made_of_the_buffers() -> None:
    run = Run()
    before = run.state()
    weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def on_jump(model: nn.Module) -> None:
        assert model is run.model
        statistics(run).fill_(3.0)
        torch.rand(())

    def probe() -> float:
        statistics(run).fill_(9.0)  # the probe's own traces go
        return 0.1

    moved = prediction(displacement_of(run.model))
    other = prediction(displacement_of(run.model, 0.5), steps=99)
    trial = run.trial(probe, on_jump)
    trial.evaluate(moved)
    trial.evaluate(other)
    assert trial.keep(moved)
    for name, parameter in run.model.named_parameters():
        expected = weights[name]
        if name in moved.displacement:
            expected = expected + torch.from_numpy(moved.displacement[name])
        assert torch.equal(parameter, expected)
    assert torch.equal(statistics(run), torch.full((16,), 3.0))
    after = run.state()
    assert after[1:] == before[1:]  # gradients, identities, modes, groups, generators
    assert optimizer_bits(after) == optimizer_bits(before)


def test_a_jump_to_weights_that_are_not_finite_is_undone() -> None:
    run = Run()
    run.model.last.half()
    huge = displacement_of(run.model)
    huge["last.bias"] = np.array([1e6], np.float32)
    before = run.state()
    assert not run.trial().keep(prediction(huge))
    assert run.state() == before


def test_half_precision_is_summed_in_full_and_rounded_once() -> None:
    weight = torch.tensor([1.0], dtype=torch.bfloat16)
    model = nn.Module()
    model.weight = nn.Parameter(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    delta = np.array(
        [0.0040], np.float32
    )  # over half of the last digit of 1 (2**-7), as bfloat16 just as well
    evaluator = Evaluator(model, None, None, Counters())
    trial = Trial(evaluator, optimizer, dict(model.named_parameters()), HeldDisplacements())
    assert trial.keep(prediction({"weight": delta}))
    assert model.weight.item() == 1.0078125


def test_callbacks_that_raise_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()

    def raising(model: nn.Module) -> None:
        raise ValueError("no recalibration")

    trial = run.trial(lambda: failing(run), raising)
    with caplog.at_level(logging.WARNING, logger="koopcast"):
        trial.loss_now()
        trial.evaluate(prediction(displacement_of(run.model)))
        assert not trial.keep(prediction(displacement_of(run.model)))
    assert len(caplog.records) == 1
    assert "no loss today" in caplog.text
