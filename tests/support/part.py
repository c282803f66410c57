"""One rank of a sharded training run under koopcast, as a process: ``part.py STORE RANK TARGET EVENTS SETTINGS``.

`SETTINGS` is JSON: ``kind`` is ``"fsdp"`` (FSDP2's `fully_shard`), ``"by-hand"`` (DTensors, each rank trains its part
without the others) or ``"replicas"`` (whole models that nothing but koopcast keeps together); ``ranks``; ``steps``;
``attach``: arguments of `koopcast.attach`; ``losses``: what the probe gives, one call after the other; ``fault``: [what,
where, n]. Prints what it has at the end as JSON.

A fault strikes ``"in the probe"`` numbered n, or ``"before step"`` n, and touches the file ``paused`` in the folder
`EVENTS`: the last rank does ``"kill"`` or ``"stop"`` to itself, or ``"lose"`` its trajectory; the first one can ``"wait"``
for a file ``resume``. ``lr`` and ``momentum`` are the optimizer's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
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
    return nn.Sequential(
        nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)
    )


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
    loss: Callable[[], Tensor]
    mesh: Any = init_device_mesh("cpu", (settings["ranks"],))
    if settings["kind"] == "fsdp":
        model = uneven_net()
        fully_shard(model[2])
        fully_shard(model)
        loss = lambda: loss_of(model)  # noqa: E731
    else:
        model = Approach(None if settings["kind"] == "replicas" else mesh)
        loss = model.loss
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.get("lr", 0.05), momentum=settings.get("momentum", 0.5)
    )
    probes = 0
    fault = settings.get("fault") or ["none", "", 0]
    struck = rank == (0 if fault[0] == "wait" else settings["ranks"] - 1)

    def strike(where: str, number: int) -> None:
        if struck and fault[1:] == [where, number]:
            suffer(fault[0], events, ahead)

    def probe() -> Tensor:
        nonlocal probes
        probes += 1
        strike("in the probe", probes)
        found = loss()  # also where what it gives is not told: it is what disturbs a model
        script = settings.get("losses")
        return found if script is None else found.detach() * 0.0 + script[min(probes, len(script)) - 1]

    arguments = {"every": EVERY, "wait_seconds": 10.0, "probe": probe, **settings.get("attach", {})}
    if arguments["probe"] is None:
        del arguments["probe"]
    arguments["operator"] = koopcast.Operator(**{**OPERATOR, **settings.get("operator", {})})
    with koopcast.attach(model, optimizer, target, **arguments) as ahead:
        for step in range(settings["steps"]):
            optimizer.zero_grad()
            torch.autograd.backward(loss())
            strike("before step", step + 1)
            optimizer.step()
        stats = ahead.stats()
    found = [
        whole(p.detach(), gathered=fault[0] not in {"kill", "stop"})
        for p in [*model.parameters(), *model.buffers()]
    ]
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


def suffer(what: str, events: Path, ahead: Any) -> None:
    (events / "paused").touch()
    if what == "lose":
        ahead._leader.recorder.break_off()
    elif what == "wait":
        while not (events / "resume").exists():
            time.sleep(0.01)
    else:
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSTOP)


def whole(tensor: Tensor, *, gathered: bool) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor() if gathered else tensor.to_local()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), json.loads(sys.argv[5]))
