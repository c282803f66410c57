"""Measures what the hook holds in a trainer, as a process: ``remembering.py TARGET OPTIMIZER AVERAGE PARAMETERS``.

The trainer itself allocates nothing once it runs. Prints, as JSON and in units of the parameters' bytes, how much more
memory is resident than before `attach`: `between` jumps, at most `at_the_jump` (searching, and undoing made possible),
`after` it until it is looked back on, and at most while `looking_back`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Self

import torch
from torch import nn

import koopcast

WINDOW, EVERY = 4, 2
PAGE = 4096


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


class Peak:
    """The most memory that was resident while this was open."""

    def __enter__(self) -> Self:
        self.bytes = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.bytes = max(self.bytes, resident())


class Approach(nn.Module):
    """Weights in a few tensors, on their way to one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList([torch.rand(count // 4) for _ in range(4)])

    def set_gradients(self) -> None:
        for part in self.parts:
            if part.grad is None:
                part.grad = torch.empty_like(part)
            part.grad.copy_(part.detach()).sub_(1.0)

    def distance(self) -> float:
        """Without a copy of anything."""
        with torch.no_grad():
            return float(sum(1.0 - part.mean() for part in self.parts))


def main(target: str, kind: str, average: bool, count: int) -> None:
    model = Approach(count)
    optimizer: torch.optim.Optimizer
    if kind == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.5, fused=True)
    unit = 4 * count

    def step() -> None:
        model.set_gradients()
        optimizer.step()
        time.sleep(0.05)  # the snapshot travels, and what that takes is freed

    for _ in range(3):
        step()
    before = resident()
    probed: list[float] = []

    def probe() -> float:
        probed.append(model.distance())
        return (
            probed[-1] if len(probed) != 4 else probed[1] / 2
        )  # after one at the first snapshot: the second candidate is the best, not the last

    with koopcast.attach(
        model, optimizer, target, probe=probe, every=EVERY, average=average, horizons=[2, 3, 4, 5],
        operator=koopcast.Operator(window=WINDOW, rank=2), search=koopcast.hook.policy.exhaustive, wait_seconds=30.0,
    ) as ahead:  # fmt: skip
        for _ in range(WINDOW * EVERY - 1):
            step()
        between = resident()
        with Peak() as jump:
            step()
        after = resident()
        for _ in range(EVERY - 1):
            step()
        with Peak() as looking_back:
            step()
        stats = ahead.stats()
    print(
        json.dumps(
            {
                "between": (between - before) / unit,
                "at_the_jump": (jump.bytes - before) / unit,
                "after": (after - before) / unit,
                "looking_back": (looking_back.bytes - before) / unit,
                "accepted": stats.jumps_accepted,
                "undone": stats.jumps_undone,
                "probes": stats.probe_evaluations,
                "decision": stats.last_decision,
                "errors": stats.service_errors,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "average", int(sys.argv[4]))
