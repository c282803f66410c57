"""One training run in a process of its own: how long its steps took, what the hook counted, how much memory it took.

    python tests/bench/overhead/trainer.py '{"model": "10M", "batch": 128, ...}'

Started by run.py, which says on which core. Prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import koopcast
from recording import status_bytes

__all__ = ["WIDTHS", "Setting", "parameters_of"]

WIDTHS: Final = {
    "0.1M": (784, 110, 110, 10),
    "1M": (784, 720, 580, 10),
    "10M": (784, 2700, 2900, 10),
    "30M": (784, 5000, 5000, 10),
    "100M": (784, 9600, 9600, 10),
}
_BATCHES: Final = 4
_UNCOUNTED: Final = 3
"""First steps of every run: allocators and caches are cold."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run does.

    Attributes:
        model: a key of `WIDTHS`; tanh between the layers.
        batch: samples of a step.
        steps: timed steps.
        mode: ``"plain"``; ``"observe"``, everything but jumps; ``"jump"``, with a probe on one batch.
        target: of the service.
        core: that the process is pinned to.
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adam"``.
        every: the stride.
        window: snapshots.
        average: snapshots are means over the stride.
        wait_seconds: that an attempt may wait for the service.
        weigh: measure memory at every step (which takes time: the times then mean nothing).
    """

    model: str
    batch: int
    steps: int
    mode: str = "plain"
    target: str = ""
    core: int = 0
    optimizer: str = "momentum"
    every: int = 10
    window: int = 6
    average: bool = False
    wait_seconds: float = 0.25
    weigh: bool = False


def parameters_of(model: str) -> int:
    """Number of parameters."""
    return sum(below * above + above for below, above in itertools.pairwise(WIDTHS[model]))


class Trainer:
    """A network, its optimizer and data; the same for every mode."""

    def __init__(self, setting: Setting) -> None:
        """Make them."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for below, above in itertools.pairwise(WIDTHS[setting.model]):
            layers += [nn.Linear(below, above), nn.Tanh()]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = _optimizer(setting.optimizer, self.model)
        inputs = torch.rand(_BATCHES * setting.batch, WIDTHS[setting.model][0])
        labels = torch.randint(0, 10, (_BATCHES * setting.batch,))
        self._batches = list(
            zip(torch.split(inputs, setting.batch), torch.split(labels, setting.batch), strict=True)
        )

    def loss(self, number: int) -> Tensor:
        """On a batch."""
        inputs, labels = self._batches[number % _BATCHES]
        return nn.functional.cross_entropy(self.model(inputs), labels)

    def step(self, number: int) -> float:
        """One optimizer step; its seconds."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss(number))
        self.optimizer.step()
        return time.perf_counter() - started


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=1e-5)
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9 if name == "momentum" else 0.0)


def attach(trainer: Trainer, setting: Setting) -> koopcast.Ahead:
    """The hook, as users attach it."""
    arguments: dict[str, Any] = {
        "target": setting.target,
        "every": setting.every,
        "operator": koopcast.Operator(window=setting.window),
        "average": setting.average,
        "wait_seconds": setting.wait_seconds,
    }
    if setting.mode == "jump":
        arguments["probe"] = lambda: trainer.loss(0)
    elif "mode" in inspect.signature(koopcast.attach).parameters:
        arguments["mode"] = "observe"
    else:
        worse = itertools.count()
        arguments["probe"] = lambda: float(next(worse))  # every jump is refused
    return koopcast.attach(trainer.model, trainer.optimizer, **arguments)


def run(setting: Setting) -> dict[str, Any]:
    """The run, timed from before the hook is attached to after it is closed."""
    trainer = Trainer(setting)
    for number in range(_UNCOUNTED):
        trainer.step(number)
    plain_peak = _peak(lambda: [trainer.step(number) for number in range(4)]) if setting.weigh else 0
    started, cpu_before = time.perf_counter(), time.process_time()
    if setting.mode == "plain":
        seconds = [trainer.step(number) for number in range(setting.steps)]
        return {
            "step_seconds": seconds,
            "run_seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_before,
        }
    with attach(trainer, setting) as ahead:
        attached = time.perf_counter() - started
        seconds = []
        scales = Scales(ahead, setting.every, plain_peak)
        for number in range(setting.steps):
            if setting.weigh:
                scales.weigh(
                    functools.partial(trainer.step, 0)
                )  # one batch: where there is noise nothing jumps
            else:
                seconds.append(trainer.step(number))
        stepped, cpu = time.perf_counter() - started, time.process_time() - cpu_before
        stats = ahead.stats()
    told = {
        key: value for key, value in dataclasses.asdict(stats).items() if isinstance(value, int | float | str)
    }
    return {
        "step_seconds": seconds,
        "run_seconds": stepped,
        "cpu_seconds": cpu,
        "close_seconds": time.perf_counter() - started - stepped,
        "attach_seconds": attached,
        "stats": told,
        "peak_bytes": scales.peaks,
        "parameter_bytes": 4 * parameters_of(setting.model),
    }


class Scales:
    """Peaks of steps above plain training's, by what the hook had to do with them. Unit: bytes.

    Attributes:
        peaks: ``"between jumps"``; ``"at a jump"``, steps that tried to, or looked back on one; ``"watched"``, the steps
            after an accepted jump until it is looked back on.
    """

    def __init__(self, ahead: koopcast.Ahead, every: int, plain_peak: int) -> None:
        """Begin at nothing."""
        self._ahead = ahead
        self._every = every
        self._plain_peak = plain_peak
        self._watched = 0
        self.peaks = {"between jumps": 0, "at a jump": 0, "watched": 0}

    def weigh(self, step: Callable[[], object]) -> None:
        """Take a step, and note its peak."""
        before = self._ahead.stats()
        peak = _peak(step) - self._plain_peak
        after = self._ahead.stats()
        self._watched -= 1
        kind = "watched" if self._watched >= 0 else "between jumps"
        if after.probe_evaluations != before.probe_evaluations:
            kind = "at a jump"
        if after.jumps_accepted > before.jumps_accepted:
            self._watched = self._every
        self.peaks[kind] = max(self.peaks[kind], peak)


def _peak(work: Callable[[], object]) -> int:
    """Highest resident memory of this process while `work` runs. Unit: bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    work()
    return status_bytes("VmHWM")


def main() -> None:
    """Run as the argument says; print what was found."""
    setting = Setting(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, {setting.core})
    torch.set_num_threads(1)
    found = run(setting)
    seconds = found.pop("step_seconds")
    found["median_step_seconds"] = float(np.median(seconds)) if seconds else math.nan
    found["mean_step_seconds"] = float(np.mean(seconds)) if seconds else math.nan
    found["longest_step_seconds"] = max(seconds, default=math.nan)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
