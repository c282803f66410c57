"""Loops as people write them: accumulation, scalers, wrappers, compiled steps, several groups, other optimizers."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopcast
from services import RunningService
from trainers import LinearTraining, NoisyNet, data, loss_of, settled, smooth_net, train, weights

WINDOW = 4
EVERY = 5
SMALL = koopcast.Operator(window=WINDOW, rank=2)
SETTINGS: dict[str, Any] = {"every": EVERY, "operator": SMALL, "wait_seconds": 10.0}


def attach(model: nn.Module, optimizer: Any, service: RunningService, **settings: Any) -> koopcast.Ahead:
    return koopcast.attach(
        model, optimizer, service.target, **{**SETTINGS, "probe": lambda: loss_of(model), **settings}
    )


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def test_accumulated_gradients_make_one_step(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = data()
    with attach(model, optimizer, service) as ahead:
        for _ in range(2 * WINDOW * EVERY):
            for part in range(4):
                chosen = slice(16 * part, 16 * part + 16)
                backward(nn.functional.mse_loss(model(inputs[chosen]), targets[chosen]) / 4)
            optimizer.step()
            optimizer.zero_grad()
        stats = settled(ahead, 2 * WINDOW)
    assert stats.steps == 2 * WINDOW * EVERY
    assert stats.snapshots_pushed == 2 * WINDOW
    assert stats.jumps_accepted >= 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_leave_the_stride_whole(
    service: RunningService, job_name: str, *, fused: bool
) -> None:
    """A fused optimizer is called on skipped steps too, and looks at `found_inf` itself."""
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    skipped = 0
    with (
        attach(model, optimizer, service, job=job_name) as ahead,
        koopcast.connect(service.target) as client,
    ):
        for step in range(60):
            optimizer.zero_grad()
            overflow = step % 7 == 3
            skipped += overflow
            backward(scaler.scale(loss_of(model) * (torch.inf if overflow else 1.0)))
            scaler.step(optimizer)
            scaler.update()
        real = 60 - skipped
        stats = settled(ahead, real // EVERY)
        status = client.job_status(job_name)
    assert stats.steps == real
    assert stats.snapshots_pushed == real // EVERY
    assert status.step == real // EVERY * EVERY
    assert stats.service_errors == 0
    assert stats.jumps_proposed >= 1


def test_accelerates_wrapper_is_unwrapped_and_only_real_steps_count(service: RunningService) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer = accelerator.prepare(smooth_net(), torch.optim.SGD(smooth_net().parameters(), lr=0.05))
    optimizer.optimizer.param_groups[0]["params"] = list(model.parameters())
    inputs, targets = data()
    micro = 0
    with attach(model, optimizer, service) as ahead:
        for _ in range(2 * WINDOW * EVERY):
            for part in range(4):
                with accelerator.accumulate(model):
                    chosen = slice(16 * part, 16 * part + 16)
                    accelerator.backward(nn.functional.mse_loss(model(inputs[chosen]), targets[chosen]))
                    optimizer.step()
                    optimizer.zero_grad()
                    micro += 1
        stats = settled(ahead, 2 * WINDOW)
    assert micro == 8 * WINDOW * EVERY
    assert stats.steps == 2 * WINDOW * EVERY
    assert stats.jumps_accepted >= 1


def test_a_wrapper_whose_optimizer_takes_no_hooks_is_refused(service: RunningService) -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = smooth_net()
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(koopcast.ArgumentTypeError, match=r"\.optimizer"):
        attach(model, wrapper, service)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own compiler, about itself
def test_a_compiled_model_and_step_jump_like_plain_ones(service: RunningService) -> None:
    run, plain = LinearTraining(), LinearTraining()

    @torch.compile(
        backend="aot_eager"
    )  # traced and functionalised as ever; the C++ compiler would take minutes
    def loss(net: nn.Module, goal: Tensor) -> Tensor:
        flat = torch.cat([parameter.flatten() for parameter in net.parameters()])
        return 0.5 * (flat - goal).square().sum()

    @torch.compile(
        backend="aot_eager"
    )  # traced and functionalised as ever; the C++ compiler would take minutes
    def step() -> None:
        run.optimizer.step()

    with attach(run.model, run.optimizer, service, probe=run.distance, horizons=[40], refine=0) as ahead:
        for _ in range(WINDOW * EVERY):
            run.optimizer.zero_grad()
            backward(loss(run.model, run.goal))
            step()
        stats = ahead.stats()
        for _ in plain.train(WINDOW * EVERY + 40):
            pass
        assert stats.steps == WINDOW * EVERY
        assert [(event.step, event.accepted) for event in stats.log] == [(WINDOW * EVERY, True)]
        torch.testing.assert_close(weights(run.model), weights(plain.model), rtol=0, atol=1e-6)
        run.optimizer.zero_grad()
        backward(loss(run.model, run.goal))  # the compiled code sees the weights where they jumped to
        step()
        for _ in plain.train(1):
            pass
        torch.testing.assert_close(weights(run.model), weights(plain.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=["foreach", "fused", "plain"]
)
def test_every_way_to_step_is_seen(service: RunningService, settings: dict[str, bool]) -> None:
    model = smooth_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)  # type: ignore[arg-type]  # of the names
    with attach(model, optimizer, service) as ahead:
        train(model, optimizer, 3 * WINDOW * EVERY)
        stats = ahead.stats()
    assert stats.steps == 3 * WINDOW * EVERY
    assert stats.jumps_accepted >= 1
    assert stats.service_errors == 0


@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_lbfgs_with_its_closure(service: RunningService, policy: Any) -> None:
    model = smooth_net()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.05, max_iter=2, history_size=4
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model)
        backward(loss)
        return loss.item()

    before = loss_of(model).item()
    with attach(model, optimizer, service, optimizer_state=policy) as ahead:
        for _ in range(3 * WINDOW * EVERY):
            optimizer.step(closure)
        stats = ahead.stats()
    assert stats.steps == 3 * WINDOW * EVERY
    assert stats.jumps_proposed >= 2
    assert stats.service_errors == 0
    assert loss_of(model).item() < before


def test_several_groups_and_a_schedule_for_one_of_them(service: RunningService) -> None:
    model = smooth_net()
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    with attach(model, optimizer, service) as ahead:
        train(model, optimizer, 2 * WINDOW * EVERY)
        assert ahead.stats().jumps_accepted >= 1
        assert ahead.stats().learning_rate_changes == 0
        optimizer.param_groups[1]["lr"] = 0.008
        train(model, optimizer, 1)
        stats = ahead.stats()
    assert stats.learning_rate_changes == 1
    assert stats.last_learning_rate_change == koopcast.hook.RateChange(41, 1, 0.01, 0.008)


def test_what_the_optimizer_does_not_train_takes_no_part(service: RunningService) -> None:
    model = NoisyNet().eval()
    optimizer = torch.optim.SGD([*model.last.parameters(), *model.second.parameters()], lr=0.05)
    untouched = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("first")}
    with attach(model, optimizer, service) as ahead:
        train(model, optimizer, 2 * WINDOW * EVERY)
        stats = ahead.stats()
    assert stats.snapshot_bytes == 4 * (17 + 16 * 17)
    assert stats.jumps_accepted >= 1
    assert all(torch.equal(model.get_parameter(name), value) for name, value in untouched.items())


def test_an_optimizer_of_another_model_is_refused(service: RunningService) -> None:
    optimizer = torch.optim.SGD(smooth_net().parameters(), lr=0.1)
    with pytest.raises(koopcast.ArgumentValueError, match="belong to the optimizer"):
        attach(smooth_net(), optimizer, service)


def test_groups_added_later_are_trained_and_not_moved(service: RunningService) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    with attach(model, optimizer, service) as ahead:
        train(model, optimizer, WINDOW * EVERY + 2)
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
        train(model, optimizer, 2 * WINDOW * EVERY)
        stats = ahead.stats()
    assert stats.snapshot_bytes == 4 * 17
    assert stats.jumps_proposed >= 2
    assert stats.service_errors == 0
    assert stats.learning_rate_changes == 0


def test_weights_assigned_anew_are_followed(service: RunningService, job_name: str) -> None:
    run = LinearTraining()
    with (
        attach(run.model, run.optimizer, service, job=job_name, probe=run.distance) as ahead,
        koopcast.connect(service.target) as client,
    ):
        for _ in run.train(2 * EVERY):
            pass
        run.model.load_state_dict(copy.deepcopy(run.model.state_dict()), assign=True)
        run.optimizer.param_groups[0]["params"] = list(run.model.parameters())
        for _ in run.train(WINDOW * EVERY):
            pass
        settled(ahead, WINDOW + 2)
        assert client.job_status(job_name).segment >= 2
        assert ahead.stats().service_errors == 0
        for _ in run.train(WINDOW * EVERY):
            pass
        assert ahead.stats().jumps_accepted >= 1


def test_batchnorm_is_recomputed_after_a_jump(service: RunningService) -> None:
    model = NoisyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = data()
    halves = list(zip(torch.split(inputs, 32), torch.split(targets, 32), strict=True))

    def probe() -> Tensor:
        model.eval()
        with torch.no_grad():
            return loss_of(model)

    with attach(
        model, optimizer, service, probe=probe, on_jump=koopcast.update_bn(halves), watch=False
    ) as ahead:
        jumps = 0
        for _ in range(20 * WINDOW * EVERY):
            train(model, optimizer, 1)
            if ahead.stats().jumps_accepted > jumps:
                break
        assert ahead.stats().jumps_accepted == 1
    expected = copy.deepcopy(model)
    koopcast.update_bn(halves)(expected)
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    torch.testing.assert_close(model.norm.running_mean, expected.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, expected.norm.running_var)
    assert model.training


def decayed(factor: float) -> tuple[LinearTraining, Callable[[], None]]:
    run = LinearTraining()

    def decay() -> None:
        run.optimizer.param_groups[0]["lr"] *= factor

    return run, decay


@pytest.mark.parametrize(("factor", "first"), [(0.1, 2 * WINDOW * EVERY - 7), (0.8, WINDOW * EVERY)])
def test_a_rate_that_drops_at_once_begins_a_window_and_a_slope_does_not(
    service: RunningService, caplog: pytest.LogCaptureFixture, factor: float, first: int
) -> None:
    run, decay = decayed(factor)
    with (
        caplog.at_level(logging.INFO, logger="koopcast"),
        attach(run.model, run.optimizer, service, probe=run.distance, horizons=[40]) as ahead,
    ):
        for step in run.train(2 * WINDOW * EVERY):
            if step == WINDOW * EVERY - 7:
                decay()
            if step == WINDOW * EVERY - 5 and factor < 0.5:
                assert "learning rate" in ahead.stats().last_decision
        stats = ahead.stats()
    assert stats.log[0].step == first
    assert stats.learning_rate_changes == 1
    change = stats.last_learning_rate_change
    assert change is not None
    assert (change.step, change.group) == (WINDOW * EVERY - 6, 0)
    assert change.after == pytest.approx(factor * change.before)
    assert caplog.text.count("learning rate") == 1


def test_a_known_schedule_is_no_break(service: RunningService) -> None:
    run = LinearTraining()
    schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, WINDOW * EVERY - 7, gamma=0.1)
    with attach(run.model, run.optimizer, service, probe=run.distance, learning_rate=schedule) as ahead:
        for _ in run.train(WINDOW * EVERY):
            schedule.step()
        stats = ahead.stats()
    assert stats.log[0].step == WINDOW * EVERY
    assert stats.learning_rate_changes == 1
