"""A load of many trainers from one process: each pushes and predicts as fast as it gets answers.

    python tests/bench/fleet/load.py TARGET [--jobs 10] [--rounds 20 | --seconds 30]

Prints one JSON object. The benchmarks of this folder and a test start it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import koopcast

STRIDE: Final = 10
SEGMENT: Final = 12
"""Snapshots of a segment: then training jumps, and a new one begins."""
_LOOKED_AT: Final = 4096
"""Elements of each answer that are compared with the truth."""
Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class Trainer:
    """What one trainer saw.

    Attributes:
        name: of its job.
        push: seconds of each push.
        predict: seconds of each prediction.
        error: relative error of each prediction.
        failures: what went wrong.
        seconds: from the common start to its end.
    """

    name: str
    push: list[float] = field(default_factory=list)
    predict: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """What all trainers do: their snapshots, shared by all of them, and for how long.

    Attributes:
        snapshots: of a segment: a fixed point and one decaying mode.
        mode: the mode.
        rounds: pushes of each trainer; None: until `seconds` have gone by.
        seconds: see `rounds`.
        start: where they wait for each other when all jobs are open.
    """

    snapshots: tuple[Floats, ...]
    mode: Floats
    rounds: int | None
    seconds: float
    start: threading.Barrier

    def goes_on(self, index: int, started: float) -> bool:
        """Whether there is a round `index`."""
        if self.rounds is not None:
            return index < self.rounds
        return time.perf_counter() - started < self.seconds


def course(size: int, jobs: int, rounds: int | None, seconds: float) -> Course:
    """The course of so many trainers with `size` parameters each."""
    generator = np.random.default_rng(7)
    fixed, mode = (generator.standard_normal(size, np.float32) for _ in range(2))
    snapshots = tuple(fixed + np.float32(0.9**index) * mode for index in range(SEGMENT))
    return Course(snapshots, mode, rounds, seconds, threading.Barrier(jobs))


def train(target: str, trainer: Trainer, way: Course) -> None:
    """One trainer: pushes, and once its window holds three snapshots predicts after every push."""
    try:
        with koopcast.connect(target, timeout_seconds=60.0) as client:
            job = client.open_job(trainer.name, {"w": way.mode}, stride=STRIDE)
            way.start.wait(timeout=120)
            _rounds(job, trainer, way)
            job.close()
    except (koopcast.KoopcastError, threading.BrokenBarrierError) as error:
        way.start.abort()
        trainer.failures.append(f"{trainer.name}: {type(error).__name__}: {error}")


def _rounds(job: koopcast.Job, trainer: Trainer, way: Course) -> None:
    started, index = time.perf_counter(), 0
    while way.goes_on(index, started):
        position = index % SEGMENT
        if index and not position:
            job.start_segment()
        begun = time.perf_counter()
        job.push(STRIDE * index, {"w": way.snapshots[position]})
        trainer.push.append(time.perf_counter() - begun)
        if position >= 2:
            begun = time.perf_counter()
            prediction = job.predict_ahead(2 * STRIDE)
            displacement = prediction.displacement["w"]
            trainer.predict.append(time.perf_counter() - begun)
            truth = np.float32(0.9**position * (0.81 - 1)) * way.mode[:_LOOKED_AT]
            wrong = np.linalg.norm(displacement[:_LOOKED_AT] - truth) / np.linalg.norm(truth)
            trainer.error.append(float(wrong))
        index += 1
    trainer.seconds = time.perf_counter() - started


def report(trainers: list[Trainer]) -> Mapping[str, Any]:
    """What all of them saw."""
    return {
        "seconds": {
            name: [value for trainer in trainers for value in getattr(trainer, name)]
            for name in ("push", "predict", "error")
        },
        "seconds_a_round": {
            trainer.name: trainer.seconds / len(trainer.push) for trainer in trainers if trainer.push
        },
        "failures": [failure for trainer in trainers for failure in trainer.failures],
    }


def main() -> int:
    """Runs the trainers in threads; prints what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--prefix", default="load")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    way = course(options.size, options.jobs, options.rounds, options.seconds)
    trainers = [Trainer(f"{options.prefix}-{index}") for index in range(options.jobs)]
    threads = [threading.Thread(target=train, args=(options.target, trainer, way)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = report(trainers)
    json.dump(found, sys.stdout)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
