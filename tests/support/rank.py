"""One rank of a data-parallel training run under koopcast, as a process: ``rank.py STORE RANK TARGET EVENTS``.

Each rank sees other data; the weights must stay the same on all. Prints what it has at the end as JSON. `EVENTS` is a
folder: rank 0 waits there for files, so that a test can act at a certain step.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import koopcast
from trainers import data, smooth_net

STEPS = 120
PAUSE_STEP = 60


def main(store: str, rank: int, target: str, events: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = smooth_net()
    model.register_buffer("jumps", torch.zeros(()))
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = (half.chunk(2)[rank] for half in data())

    def loss(module: torch.nn.Module) -> torch.Tensor:
        return torch.nn.functional.mse_loss(module(inputs), targets)

    def on_jump(module: torch.nn.Module) -> None:
        module.get_buffer("jumps").add_(1)

    with koopcast.attach(
        model, optimizer, target, job="ranks", probe=lambda: loss(model), on_jump=on_jump, every=5, horizons=[20, 40],
        operator=koopcast.Operator(window=4, rank=2), wait_seconds=10.0,
    ) as ahead:  # fmt: skip
        for step in range(STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(loss(replica))
            optimizer.step()
            if step == PAUSE_STEP and rank == 0:
                (events / "paused").touch()
                while not (events / "resume").exists():
                    time.sleep(0.01)
        stats = ahead.stats()
    flat = torch.cat([tensor.detach().flatten() for tensor in [*model.parameters(), *model.buffers()]])
    print(
        json.dumps(
            {
                "weights": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
                "jumps": float(model.get_buffer("jumps")),
                "steps": stats.steps,
                "accepted": stats.jumps_accepted,
                "log": [[event.step, event.accepted] for event in stats.log],
                "pushed": stats.snapshots_pushed,
                "last_decision": stats.last_decision,
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
