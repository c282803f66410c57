"""How fast a window publishes and combines, beside a plain copy of the same bytes.

    PYTHONPATH=client python tests/bench/window_bandwidth.py [--device cuda] [--elements 8000000]

Prints GB/s of window bytes touched: publish reads every velocity, the spare and the last snapshot and writes one
velocity; combine reads every velocity and writes the answer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from koopcast.window import Window


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Return the median time of `work`, device included."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def measure(name: str, bounds: list[int], length: int, device: torch.device) -> None:
    """Print one line for a partition."""
    size = bounds[-1]
    window = Window(bounds, length, snapshot_dtype=torch.float32, window_dtype=torch.float32, device=device)
    snapshot = torch.randn(size, device=device)
    for index in range(length + 1):
        window.spare.copy_(snapshot + index)
        window.publish()
    coefficients = torch.randn((len(bounds) - 1, length - 1), dtype=torch.float64)
    out = torch.empty(size, device=device)
    publish = seconds(window.publish, device)
    combine = seconds(lambda: window.combine(coefficients, None, out), device)
    copy = seconds(lambda: out.copy_(snapshot), device)
    gigabytes = 4e-9 * size
    print(
        f"{name:>22}: publish {(length + 2) * gigabytes / publish:8.2f} GB/s ({publish * 1e3:.1f} ms), "
        f"combine {length * gigabytes / combine:8.2f} GB/s ({combine * 1e3:.1f} ms), "
        f"copy {2 * gigabytes / copy:8.2f} GB/s"
    )


def main() -> None:
    """Measure one block, hundreds of tensors, and many short blocks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--elements", type=int, default=8_000_000)
    parser.add_argument("--length", type=int, default=12)
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), arguments.elements
    for name, width in (("one block", size), ("300 blocks", -(-size // 300)), ("blocks of 64", 64)):
        bounds = [*range(0, size, width), size]
        measure(name, bounds, arguments.length, device)


if __name__ == "__main__":
    main()
