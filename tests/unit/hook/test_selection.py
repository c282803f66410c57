"""Which parameters take part, and their copies and means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import koopcast
from koopcast.hook.buffers import BufferPool
from koopcast.hook.selection import Averager, Selection, WeightsChangedError
from trainers import NoisyNet, smooth_net


def test_trainable_parameters_take_part_and_tied_ones_once() -> None:
    selection = Selection(NoisyNet(), None, averaged=False)
    assert list(selection.specs) == [
        "first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight", "second.bias", "last.weight",
        "last.bias",
    ]  # fmt: skip


def test_types_may_mix_and_others_stay_out() -> None:
    model = nn.Module()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64):
        setattr(model, str(dtype).replace("torch.", "a_"), nn.Parameter(torch.ones(2, dtype=dtype)))
    model.none = nn.Parameter(torch.ones(0))
    specs = Selection(model, None, averaged=False).specs
    assert {name: spec.dtype for name, spec in specs.items()} == {
        f"a_{name}": name for name in ("float64", "float32", "bfloat16", "float16")
    }
    averaged = Selection(model, None, averaged=True).specs
    assert [spec.dtype for spec in averaged.values()] == ["float64", "float32", "float32", "float32"]


def test_a_filter_chooses_by_name() -> None:
    specs = Selection(
        NoisyNet(), lambda name, parameter: name.startswith(("last", "scale")), averaged=False
    ).specs
    assert list(specs) == ["scale", "last.weight", "last.bias"]


def test_no_parameter_is_an_argument_error() -> None:
    with pytest.raises(koopcast.ArgumentValueError, match="filter"):
        Selection(NoisyNet(), lambda name, parameter: False, averaged=False)


def test_a_lazy_module_is_an_argument_error() -> None:
    with pytest.raises(koopcast.ArgumentValueError, match="forward"):
        Selection(nn.LazyLinear(3), None, averaged=False)


def test_parameters_are_looked_up_every_time() -> None:
    model = smooth_net()
    selection = Selection(model, None, averaged=False)
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)
    assert selection.parameters()["0.weight"] is model[0].weight
    model[0] = nn.Linear(8, 17)
    with pytest.raises(WeightsChangedError, match=r"0\.weight"):
        selection.parameters()


def test_means_of_half_precision_are_kept_in_full() -> None:
    model = nn.Module()
    model.wide = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.narrow = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    averager = Averager()
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            model.wide.fill_(value)
            model.narrow.fill_(value)
        averager.add(dict(model.named_parameters()))
    means = averager.means()
    assert averager.steps == 3
    assert means["wide"].dtype == torch.float64
    torch.testing.assert_close(means["wide"], torch.full((3,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(means["narrow"], torch.full((3,), 3.0))
    averager.reset()
    averager.add(dict(model.named_parameters()))
    torch.testing.assert_close(averager.means()["narrow"], torch.full((3,), 6.0))


def test_buffers_are_copies_and_their_number_is_fixed() -> None:
    model = smooth_net()
    selection = Selection(model, None, averaged=False)
    pool = BufferPool(selection.specs, 2, pinned=False)
    first, second = pool.take(0.0), pool.take(0.0)
    assert first is not None
    assert second is not None
    assert pool.take(0.0) is None
    assert pool.take(0.01) is None
    first.fill(selection.parameters())
    first.wait()
    kept = first.tensors["0.weight"].clone()
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1.0)
    assert torch.equal(first.tensors["0.weight"], kept)
    pool.give(first)
    assert pool.take(0.0) is first
