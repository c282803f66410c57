"""An example trainer, apart from the service: fits a small network twice, the second time with koopcast.

    KOOPCAST_TARGET=koopcast:50051 KOOPCAST_CA=ca.pem KOOPCAST_TOKEN_FILE=token python trainer_example.py

Exits 1 if the service was never reached: training does not mind, but then there is nothing to see.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

import koopcast

STEPS = int(os.environ.get("KOOPCAST_STEPS", "1000"))


class Fit:
    """A small network, its data and its loss; the same whenever it is made."""

    def __init__(self) -> None:
        """Begin at the seed."""
        torch.manual_seed(0)
        self.inputs = torch.linspace(-1, 1, 256)[:, None]
        self.targets = torch.sin(3 * self.inputs)
        self.model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def loss(self) -> torch.Tensor:
        """The loss on all data; also the probe."""
        return nn.functional.mse_loss(self.model(self.inputs), self.targets)

    def train(self, steps: int) -> None:
        """An ordinary training loop."""
        for step in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.optimizer.step()
            if step % (STEPS // 5) == 0:
                print(f"  step {step:5d}  loss {loss.item():.2e}", flush=True)
        print(f"  step {steps:5d}  loss {self.loss().item():.2e}", flush=True)


def main() -> int:
    """Trains plainly, then with koopcast, and prints both."""
    target = os.environ.get("KOOPCAST_TARGET", "127.0.0.1:50051")
    token_file = os.environ.get("KOOPCAST_TOKEN_FILE")
    print(f"plain, {STEPS} steps", flush=True)
    Fit().train(STEPS)

    print(f"with koopcast at {target}, {STEPS} steps", flush=True)
    fit = Fit()
    with koopcast.attach(
        fit.model,
        fit.optimizer,
        target=target,
        token=Path(token_file).read_text(encoding="utf-8").strip() if token_file else None,
        ca=os.environ.get("KOOPCAST_CA"),
        probe=fit.loss,
        every=10,
    ) as ahead:
        fit.train(STEPS)
    stats = ahead.stats()
    print(
        f"jumps: {stats.jumps_accepted} of {stats.jumps_proposed} accepted; "
        f"{stats.probe_evaluations} probes, each of which costs a step as well; "
        f"{stats.snapshots_pushed} snapshots pushed, {stats.service_errors} service errors",
        flush=True,
    )
    return 0 if stats.snapshots_pushed else 1


if __name__ == "__main__":
    sys.exit(main())
