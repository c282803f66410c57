"""A training run that saves itself, as a process: ``resumed.py TARGET JOB FOLDER STOP_AT``.

Loads what an earlier process saved in FOLDER, if anything; trains to STEPS, or at STOP_AT saves and waits to be killed.
Prints what it has at the end as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

import koopcast
from trainers import loss_of, smooth_net

STEPS = 90
EVERY = 5


def main(target: str, job: str, folder: Path, stop_at: int) -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    saved = torch.load(folder / "run.pt") if (folder / "run.pt").exists() else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    goes_on = None
    with koopcast.attach(
        model, optimizer, target, job=job, probe=lambda: loss_of(model), every=EVERY, horizons=[20, 40],
        operator=koopcast.Operator(window=8, rank=2), learning_rate=schedule, refine=0, wait_seconds=10.0,
    ) as ahead:  # fmt: skip
        if saved is not None:
            goes_on = ahead.load_state_dict(saved["ahead"])
        while ahead.stats().steps < STEPS:
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(model))
            optimizer.step()
            schedule.step()
            if ahead.stats().steps == stop_at:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "ahead": ahead.state_dict(),
                }
                torch.save(state, folder / "run.pt")
                print("saved", flush=True)
                time.sleep(60)  # to be killed, with its lease alive
        stats = ahead.stats()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    print(
        json.dumps(
            {
                "goes_on": goes_on,
                "weights": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
                "steps": stats.steps,
                "log": [[event.step, event.horizon, event.accepted, event.loss_after] for event in stats.log],
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
