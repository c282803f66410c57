"""Lent memory for copies, the optimizer's shadow, and how many bytes an attempt keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopcast.hook.buffers import BufferPool
from koopcast.hook.displacements import as_tensors
from koopcast.hook.memory import Arena, TensorMemory, TrainerMemory
from koopcast.hook.selection import Selection
from koopcast.hook.shadow import ShadowState
from koopcast.hook.stats import Counters
from koopcast.hook.trial import Evaluator, Trial
from koopcast.prediction import Prediction
from trainers import displacement_of, loss_of, prediction, smooth_net, train


def test_copies_lie_in_lent_memory_until_it_is_full() -> None:
    block = torch.zeros(8192, dtype=torch.uint8)
    arena = Arena([block])
    first, second = arena.copy(torch.arange(512.0)), arena.copy(torch.full((256,), 7.0, dtype=torch.float64))
    third = arena.copy(torch.ones(768, dtype=torch.float64))
    small = arena.copy(torch.tensor(3.0))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() == block.data_ptr()
    assert third.untyped_storage().data_ptr() != block.data_ptr()
    assert small.untyped_storage().data_ptr() != block.data_ptr()  # there would have been room
    assert first.tolist() == list(range(512))
    assert set(second.tolist()) == {7.0}
    assert third.sum().item() == 768.0


def test_lent_memory_takes_any_layout_and_type() -> None:
    arena = Arena([torch.zeros(1 << 16, dtype=torch.uint8)])
    for tensor in (
        torch.arange(600.0).reshape(20, 30).t(),
        torch.zeros(0),
        torch.arange(2000) % 3 == 0,
        torch.arange(500, dtype=torch.int64),
        torch.ones(701, dtype=torch.bfloat16),
        torch.ones(1).expand(400),
    ):
        assert torch.equal(arena.copy(tensor), tensor)


def test_memory_is_given_back_once() -> None:
    given: list[int] = []
    arena = Arena([torch.zeros(64, dtype=torch.uint8)], lambda: given.append(1))
    arena.release()
    arena.release()
    assert given == [1]


def test_lent_buffers_come_back_to_the_pool() -> None:
    pool = BufferPool(Selection(smooth_net(), None, averaged=False).specs, 2, pinned=False)
    busy = pool.take(0.0)
    assert busy is not None
    arena = pool.lend()
    assert pool.take(0.0) is None
    arena.release()
    assert pool.take(0.0) is not None
    assert pool.take(0.0) is None


def test_what_another_memory_remembers_is_not_copied_twice() -> None:
    tensor, other = torch.ones(3), torch.zeros(3)
    first = TensorMemory()
    first.remember(tensor)
    second = TensorMemory(besides=first)
    second.remember([tensor, other])
    assert second.copy_of(tensor) is None
    assert second.copy_of(other) is not None


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    torch.autograd.backward(loss_of(model))
    optimizer.step()


def adam() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 2)
    return model, optimizer


def test_the_shadow_looks_like_the_state_and_keeps_it_from_harm() -> None:
    model, optimizer = adam()
    original = optimizer.state
    before = copy.deepcopy(optimizer.state_dict())
    shadow = ShadowState(original)
    parameters = list(model.parameters())
    assert len(shadow) == len(original) == 4
    assert list(shadow) == list(original)
    shadow[parameters[0]]["exp_avg"].zero_()
    shadow[parameters[1]]["step"] = 17
    del shadow[parameters[2]]
    assert parameters[2] not in shadow
    assert len(shadow) == 3
    assert shadow[parameters[2]] == {}  # as of a defaultdict
    shadow["new"] = {"mine": 1}
    assert len(shadow) == 5
    with pytest.raises(KeyError):
        del shadow["missing"]
    shadow.clear()
    assert len(shadow) == 0
    after = optimizer.state_dict()
    assert after["state"].keys() == before["state"].keys()
    for index, entry in before["state"].items():
        assert all(torch.equal(after["state"][index][name], value) for name, value in entry.items())


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.Adam, {"lr": 0.01, "fused": True}),
    (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
    (torch.optim.Adagrad, {"lr": 0.01}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize(
    ("kind", "settings"), OPTIMIZERS, ids=[f"{k.__name__}-{list(s)[-1:]}" for k, s in OPTIMIZERS]
)
def test_a_probe_may_step_any_optimizer(kind: Any, settings: dict[str, Any]) -> None:
    runs = []
    for probing in (False, True):
        model = smooth_net()
        optimizer = kind(model.parameters(), **settings)
        train(model, optimizer, 3)
        if probing:
            memory = TrainerMemory(model, optimizer)
            memory.hide()
            weights = [parameter.detach().clone() for parameter in model.parameters()]
            stepped(optimizer, model)
            assert not all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
            memory.restore()
        train(model, optimizer, 3)
        runs.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, probed) for plain, probed in zip(*runs, strict=True))


def test_a_probe_may_step_lbfgs() -> None:
    runs = []
    for probing in (False, True):
        model = smooth_net()
        optimizer: torch.optim.Optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> float:
            optimizer.zero_grad()
            loss = loss_of(model)
            torch.autograd.backward(loss)
            return loss.item()

        optimizer.step(closure)
        if probing:
            memory = TrainerMemory(model, optimizer)
            memory.hide()
            optimizer.step(closure)
            memory.restore()
        optimizer.step(closure)
        runs.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, probed) for plain, probed in zip(*runs, strict=True))


class Counted:
    """Displacements made when asked for, and how many of them are alive."""

    failure = ""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.alive = 0
        self.most = 0

    def of(self, candidate: Prediction) -> dict[str, Tensor]:
        found = as_tensors(displacement_of(self.model, 1e-4 * candidate.steps))
        self.alive += 1
        self.most = max(self.most, self.alive)
        first = next(iter(found.values()))
        import weakref

        weakref.finalize(first, self._gone)
        return found

    def _gone(self) -> None:
        self.alive -= 1


def test_two_displacements_are_held_at_most_and_none_after_the_jump() -> None:
    model, optimizer = adam()
    losses = iter([5.0, 4.0, 6.0, 3.0, 7.0])
    counted = Counted(model)
    evaluator = Evaluator(model, lambda: next(losses), None, Counters())
    trial = Trial(evaluator, optimizer, dict(model.named_parameters()), counted)
    candidates = [prediction(steps=float(steps)) for steps in range(1, 6)]
    for candidate in candidates:
        trial.evaluate(candidate)
    assert counted.most == 2
    assert trial.keep(candidates[3])
    assert counted.alive == 0


def test_of_what_on_jump_leaves_only_changes_are_kept() -> None:
    model = smooth_net()
    model.register_buffer("seen", torch.zeros(()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def on_jump(net: nn.Module) -> None:
        net.get_buffer("seen").fill_(3.0)
        with torch.no_grad():
            net.get_parameter("0.bias").mul_(2.0)

    evaluator = Evaluator(model, lambda: 0.5, on_jump, Counters())
    moves = prediction(displacement_of(model))
    displacement = as_tensors(moves.displacement)
    trial = Trial(evaluator, optimizer, dict(model.named_parameters()), Counted(model))
    candidate = trial._adapt_unprobed(moves)
    assert candidate is not None
    assert {id(tensor) for tensor, _ in candidate.adapted} == {
        id(model.get_parameter("0.bias")),
        id(model.get_buffer("seen")),
    }
    assert displacement.keys() == candidate.displacement.keys()
