"""One rank of a sharded training run under koopcast, as a process: ``part.py STORE RANK TARGET EVENTS SETTINGS``.

`SETTINGS` is JSON: ``kind`` is ``"fsdp"`` (FSDP2's `fully_shard`), ``"by-hand"`` (DTensors, each rank trains its part
without the others) or ``"replicas"`` (whole models that nothing but koopcast keeps together); ``ranks``; ``steps``;
``attach``: arguments of `koopcast.attach`; ``pause``: what the last rank does to itself in the middle of its n-th probe, as
[n, "kill" | "stop"], before which it makes the file ``paused`` in the folder `EVENTS`. Prints what it has at the end as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import koopcast
from trainers import data

EVERY = 5
OPERATOR = {"window": 4, "rank": 2}


def uneven_net() -> nn.Sequential:
    """Layers of 5, 3 and 1 rows: no two ranks hold parts of the same size, and of the last one all but one hold none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))


def loss_of(model: nn.Module) -> Tensor:
    inputs, targets = data()
    return nn.functional.mse_loss(model(inputs), targets)


class Approach(nn.Module):
    """Weights that approach a goal, part by part; nothing of it needs another rank."""

    def __init__(self, mesh: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        whole = {name: torch.randn(7, 3, generator=generator) for name in ("one", "two")}
        for name, weights in whole.items():
            sharded = weights if mesh is None else distribute_tensor(weights, mesh, [Shard(0)])
            self.register_parameter(name, nn.Parameter(sharded))

    def parts(self) -> list[Tensor]:
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters()]

    def loss(self) -> Tensor:
        return torch.stack([0.5 * part.square().sum() for part in self.parts()]).sum()


def main(store: str, rank: int, target: str, events: Path, settings: dict[str, Any]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=settings["ranks"])
    model: Any
    mesh = init_device_mesh("cpu", (settings["ranks"],))
    if settings["kind"] == "fsdp":
        model = uneven_net()
        fully_shard(model[2])
        fully_shard(model)
        loss = lambda: loss_of(model)  # noqa: E731
    else:
        model = Approach(None if settings["kind"] == "replicas" else mesh)
        loss = model.loss
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.get("rate", 0.05), momentum=0.5)
    probes = 0

    def probe() -> Tensor:
        nonlocal probes
        probes += 1
        fault = settings.get("pause")
        if fault and rank == settings["ranks"] - 1 and probes == fault[0]:
            (events / "paused").touch()
            os.kill(os.getpid(), signal.SIGKILL if fault[1] == "kill" else signal.SIGSTOP)
        return loss()

    arguments = {"every": EVERY, "wait_seconds": 10.0, "probe": probe, **settings.get("attach", {})}
    if arguments["probe"] is None:
        del arguments["probe"]
    arguments["operator"] = koopcast.Operator(**{**OPERATOR, **settings.get("operator", {})})
    with koopcast.attach(model, optimizer, target, **arguments) as ahead:
        for step in range(settings["steps"]):
            optimizer.zero_grad()
            torch.autograd.backward(loss())
            optimizer.step()
            if fault := settings.get("fault"):
                handle_fault(fault, step, rank, events)
        stats = ahead.stats()
    local = settings["kind"] == "by-hand"
    found = [whole(p.detach(), gathered=not local) for p in [*model.parameters(), *model.buffers()]]
    flat = torch.cat([tensor.flatten().double() for tensor in found])
    print(
        json.dumps(
            {
                "weights": flat.tolist(),
                "job": ahead.job,
                "accepted": stats.jumps_accepted,
                "log": [[event.step, event.accepted, event.horizon] for event in stats.log],
                "pushed": stats.snapshots_pushed,
                "dropped": stats.snapshots_dropped,
                "probes": stats.probe_evaluations,
                "bytes": stats.bytes_sent + stats.bytes_received,
                "last_decision": stats.last_decision,
                "reasons": [event.reason for event in stats.log],
            }
        ),
        flush=True,
    )
    os._exit(0)  # other ranks may be gone: nothing is left to be said to them


def handle_fault(fault: str, step: int, rank: int, events: Path) -> None:
    """Wait, before step 31 of the first rank, for the test to do something to the service."""
    if fault == "service" and step == 30 and not rank:
        (events / "paused").touch()
        while not (events / "resume").exists():
            signal.sigtimedwait([], 0.01)


def whole(tensor: Tensor, *, gathered: bool) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor() if gathered else tensor.to_local()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), json.loads(sys.argv[5]))
