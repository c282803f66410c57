"""A load of many jobs from one process, as the concurrency benchmark and its test use it."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

import numpy as np

import koopcast

STRIDE = 10


def trajectory(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point and one decaying mode, float32."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal(size).astype(np.float32), generator.standard_normal(size).astype(
        np.float32
    )


def run_job(
    target: str, name: str, size: int, rounds: int, report: dict[str, list[float]], failures: list[str]
) -> None:
    """One trainer: pushes, and once its window holds three snapshots predicts after every push."""
    try:
        fixed, mode = trajectory(size, hash(name) % 2**32)
        with koopcast.connect(target, timeout_seconds=60.0) as client:
            job = client.open_job(name, {"w": koopcast.TensorSpec("float32", (size,))}, stride=STRIDE)
            for index in range(rounds):
                weights = fixed + np.float32(0.9**index) * mode
                started = time.perf_counter()
                job.push(STRIDE * index, {"w": weights})
                report["push"].append(time.perf_counter() - started)
                if index >= 2:
                    started = time.perf_counter()
                    prediction = job.predict_ahead(2 * STRIDE)
                    report["predict"].append(time.perf_counter() - started)
                    truth = np.float32(0.9**index * (0.81 - 1)) * mode
                    error = float(
                        np.linalg.norm(prediction.displacement["w"] - truth) / np.linalg.norm(truth)
                    )
                    report["error"].append(error)
            job.close()
    except koopcast.KoopcastError as error:
        failures.append(f"{name}: {type(error).__name__}: {error}")


def main() -> int:
    """Runs the jobs in threads; prints what happened as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--prefix", default="load")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    report: dict[str, list[float]] = {"push": [], "predict": [], "error": []}
    failures: list[str] = []
    threads = [
        threading.Thread(
            target=run_job,
            args=(
                options.target,
                f"{options.prefix}-{index}",
                options.size,
                options.rounds,
                report,
                failures,
            ),
        )
        for index in range(options.jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump({"seconds": report, "failures": failures}, sys.stdout)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
