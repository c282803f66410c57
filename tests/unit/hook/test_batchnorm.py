"""Recomputing BatchNorm statistics after a jump."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn as torchs_update_bn

import koopcast
from trainers import NoisyNet, bits, smooth_net


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(16, 8, generator=generator), torch.zeros(16)) for _ in range(count)]


def test_it_does_what_torch_does() -> None:
    ours = NoisyNet()
    ours.norm.eval()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    koopcast.update_bn(batches())(ours)
    torch.manual_seed(1)
    torchs_update_bn(batches(), theirs)
    assert bits(ours) == bits(theirs)
    assert [module.training for module in ours.modules()] == [
        name != "norm" for name, _ in ours.named_modules()
    ]
    assert ours.norm.momentum == 0.1
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_with_a_momentum_the_last_batches_count_most() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    koopcast.update_bn([torch.zeros(4, 1), torch.full((4, 1), 2.0)], momentum=0.5)(model)
    mean = model[0].running_mean
    assert isinstance(mean, torch.Tensor)
    assert mean.item() == 1.0
    koopcast.update_bn([torch.zeros(4, 1), torch.zeros(4, 1), torch.full((4, 1), 3.0)])(model)
    assert mean.item() == pytest.approx(1.0)


def test_a_model_without_statistics_is_left_alone() -> None:
    calls: list[object] = []
    model = smooth_net()
    model.register_forward_hook(lambda *_: calls.append(1))
    koopcast.update_bn(batches())(model)
    assert not calls


def test_modes_come_back_after_an_error() -> None:
    model = NoisyNet().eval()
    with pytest.raises(RuntimeError):
        koopcast.update_bn([torch.zeros(4, 99)])(model)
    assert not model.training
    assert model.norm.momentum == 0.1


def test_what_can_be_gone_through_only_once_is_refused() -> None:
    with pytest.raises(koopcast.ArgumentTypeError, match="batches"):
        koopcast.update_bn(iter(batches()))
    with pytest.raises(koopcast.ArgumentValueError, match="momentum"):
        koopcast.update_bn(batches(), momentum=2.0)
