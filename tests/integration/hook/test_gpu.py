"""The hook on a CUDA device: pinned copies behind the stream, random states of the device, jumps on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import koopcast
from koopcast.hook.buffers import BufferPool
from koopcast.hook.selection import Selection
from services import RunningService

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trained(target: str | None, *, refuse: bool) -> tuple[list[bytes], float, koopcast.hook.Stats | None]:
    torch.manual_seed(0)
    inputs = torch.rand(256, 32, device="cuda")
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss() -> torch.Tensor:
        error: torch.Tensor = model(inputs) - inputs.sum(1, keepdim=True)
        return error.square().mean()

    def probe() -> torch.Tensor:
        torch.autograd.backward(loss())
        model.train(mode=not refuse)
        return torch.tensor(0.0, device="cuda") if refuse else loss()

    ahead = None
    if target is not None:
        ahead = koopcast.attach(model, optimizer, target, probe=probe, every=2, wait_seconds=10.0)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        optimizer.step()
    stats = None
    if ahead is not None:
        stats = ahead.stats()
        ahead.close()
    weights = [parameter.detach().cpu().numpy().tobytes() for parameter in model.parameters()]
    return weights, torch.rand((), device="cuda").item(), stats


def test_refused_jumps_leave_no_trace_on_the_device(service: RunningService) -> None:
    plain, refused = trained(None, refuse=True), trained(service.target, refuse=True)
    assert refused[:2] == plain[:2]
    assert refused[2] is not None
    assert refused[2].jumps_rejected >= 3


def test_a_copy_under_way_is_of_the_weights_before_the_next_step() -> None:
    """The copy runs on a stream of its own; what writes to the weights waits for it on the device, and nobody else."""
    model = nn.Linear(4096, 4096, bias=False).cuda()
    pool = BufferPool(Selection(model, None, averaged=False).specs, 2, pinned=True)
    with torch.no_grad():
        for step in range(50):
            model.weight.fill_(float(step))
            buffer = pool.take(0.0)
            assert buffer is not None
            pool.fill(buffer, dict(model.named_parameters()))
            pool.hold_writers()
            model.weight.fill_(-1.0)
            buffer.wait()
            values = buffer.tensors["weight"]
            assert (values.min().item(), values.max().item()) == (step, step)
            pool.give(buffer)


def test_jumps_on_the_device(service: RunningService) -> None:
    stats = trained(service.target, refuse=False)[2]
    assert stats is not None
    assert stats.jumps_proposed >= 1
    assert stats.snapshots_dropped == stats.service_errors == 0
