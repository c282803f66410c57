"""How fast a window publishes and combines, beside what the machine's memory gives.

    python tests/bench/engine/window.py [--large] [--device cuda] [--threads 2] [--json FILE]

Bytes are counted: those that must move, not those that do. A publish reads all velocities but the new one, the spare
and the last snapshot, and writes the new velocity; a combination reads all velocities and writes the answer. The
yardsticks are a plain copy of the window (bytes read and written) and dot products of its rows (bytes read), measured
by turns with the work itself; everything is a median. Times are the wall clock's; with one thread on the CPU they are
processor time, so that what else runs on the machine counts less. `error` is the largest one of a Gram entry, relative to
|v_i| |v_j|, on differences spread over some decades.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import koopcast.window.gram as gram_module
from koopcast.blocks import BlockPlan
from koopcast.partition import plan_blocks
from koopcast.window import Window
from koopcast.wire import TensorSpec

CLASSIFIER = (784, 512, 512, 10)
FLOAT32_FROM = gram_module._FLOAT32_FROM


@dataclass(frozen=True)
class Case:
    """One window to measure.

    Attributes:
        name: of the blocks.
        plan: the blocks.
        length: snapshots in the window.
        stored: dtype of the velocities; snapshots are float32.
        with_state: with products of velocities and weights.
        exact: in float64 whatever the blocks' length.
    """

    name: str
    plan: BlockPlan
    length: int = 16
    stored: torch.dtype = torch.float32
    with_state: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Line:
    """What was measured. Rates in GB/s, times in ms."""

    name: str
    elements: int
    blocks: int
    window: str
    publish_ms: float
    publish_rate: float
    combine_ms: float
    combine_rate: float
    copy_ms: float
    copy_rate: float
    dot_rate: float
    error: float | None


def network(elements: int) -> BlockPlan:
    """One block."""
    return plan_blocks({"w": TensorSpec("float32", (elements,))}, "network")


def classifier(partition: str, inputs: int | None = None) -> BlockPlan:
    """The blocks of a network of dense layers."""
    specs = {}
    for number, (wide, units) in enumerate(itertools.pairwise(CLASSIFIER)):
        specs[f"{number}.weight"] = TensorSpec("float32", (units, wide))
        specs[f"{number}.bias"] = TensorSpec("float32", (units,))
    return plan_blocks(specs, partition, inputs)


def fill(window: Window) -> None:
    """Push snapshots until the ring has gone around: gradients over some decades that decay, and some noise."""
    generator = torch.Generator(window.device).manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(window.size, generator=generator, device=window.device)

    direction = 1e-3 * noise() * torch.exp(2 * noise())
    window.spare.copy_(noise())
    window.publish()
    for index in range(window.length + 1):
        window.spare.copy_(window.last).add_(direction, alpha=0.9**index).add_(noise(), alpha=2e-5)
        window.publish()


def medians(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Seconds of each, measured by turns, so that a busy moment of the machine meets all of them."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            begin = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(clock() - begin)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def gram_error(window: Window) -> float:
    """Largest error of the only block's Gram matrix."""
    stored, order = window._slots.velocities, window._slots.order()
    true = torch.zeros((len(stored), len(stored)), dtype=torch.float64, device=window.device)
    for start in range(0, window.size, 1 << 16):
        piece = stored[:, start : start + (1 << 16)].double()
        true += piece @ piece.T
    true = true[order][:, order]
    products = window.products(0)
    assert products is not None
    lengths = true.diagonal().sqrt()
    error = (products.velocity_gram[0] - true.cpu()).abs() / torch.outer(lengths, lengths).cpu()
    return float(error.max())


def measure(case: Case, device: torch.device, repeats: int) -> Line:
    """Build, fill and measure one window."""
    gram_module._FLOAT32_FROM = sys.maxsize if case.exact else FLOAT32_FROM  # type: ignore[misc]  # Final
    window = Window(
        case.plan,
        case.length,
        snapshot_dtype=torch.float32,
        window_dtype=case.stored,
        with_state=case.with_state,
        device=device,
    )
    fill(window)
    rows, out = window._slots.velocities, torch.empty(window.size, device=device)
    held, even = len(rows), window.size // 2 * 2
    # The yardstick is the memory's, so the same bytes are always read as float32.
    numbers = [row[:even].view(torch.float32) for row in rows]
    coefficients = [torch.randn((group.count, held), dtype=torch.float64) for group in case.plan.groups]

    def combine() -> None:
        for number, own in enumerate(coefficients):
            if window.is_dual(number):
                window.combine(number, own, None, out)
            else:  # short blocks are answered with their own elements
                step = 1 << 16
                for first in range(0, len(own), step):
                    stop = min(first + step, len(own))
                    vectors = window.vectors(number, first, stop)
                    window.scatter(number, first, stop, vectors.last, out)

    seconds = medians(
        {
            "publish": window.publish,
            "combine": combine,
            "copy": lambda: [out.copy_(row) for row in rows],
            "dot": lambda: [torch.dot(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=False)],
        },
        device,
        repeats,
    )
    n, width = window.size, case.stored.itemsize
    gigabyte = 1e9
    return Line(
        name=case.name,
        elements=n,
        blocks=case.plan.block_count,
        window=f"{case.length} {str(case.stored).removeprefix('torch.')}",
        publish_ms=seconds["publish"] * 1e3,
        publish_rate=n * (held * width + 8) / gigabyte / seconds["publish"],
        combine_ms=seconds["combine"] * 1e3,
        combine_rate=n * (held * width + 4) / gigabyte / seconds["combine"],
        copy_ms=seconds["copy"] * 1e3,
        copy_rate=n * held * (width + 4) / gigabyte / seconds["copy"],
        dot_rate=n * width * (held // 2 * 2) / gigabyte / seconds["dot"],
        error=gram_error(window) if case.name.startswith("one block") else None,
    )


def cases(*, large: bool) -> list[Case]:
    """What is measured."""
    found = []
    for elements in (10**6, 10**7, 10**8) if large else (10**6, 10**7):
        plan = network(elements)
        found += [
            Case("one block, float32 products", plan),
            Case("one block, float64 products", plan, exact=True),
        ]
        if elements < 10**8:
            found += [
                Case("one block, with state", plan, with_state=True),
                Case("one block, bfloat16", plan, stored=torch.bfloat16),
            ]
    found += [
        Case("784-512-512-10, tensors", classifier("tensor"), 12),
        Case("784-512-512-10, nodes", classifier("node"), 12),
        Case("784-512-512-10, nodes, with state", classifier("node"), 12, with_state=True),
        Case("784-512-512-10, quasi-nodes of 64", classifier("quasi_node", 64), 12),
        Case("784-512-512-10, quasi-nodes of 20", classifier("quasi_node", 20), 12),
        Case("784-512-512-10, weights", classifier("weight"), 12),
        Case(
            "100,000 nodes of 65",
            plan_blocks(
                {
                    "a.weight": TensorSpec("float32", (100_000, 64)),
                    "a.bias": TensorSpec("float32", (100_000,)),
                },
                "node",
            ),
            12,
        ),
    ]
    return found


def main() -> None:
    """Measure, print a table, and keep the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="n = 10^8 too, 6.8 GB")
    parser.add_argument("--threads", type=int, help="torch's threads (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; GB/s, and milliseconds\n")
    print("| blocks | n | window | publish | of dot | combine | of dot | copy | dot | error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    lines = []
    for case in cases(large=arguments.large):
        line = measure(case, device, arguments.repeats)
        lines.append(line)
        error = "" if line.error is None else f"{line.error:.0e}"
        print(
            f"| {line.name} | {line.elements:.0e} | {line.window} "
            f"| {line.publish_rate:.1f} ({line.publish_ms:.1f} ms) | {line.publish_rate / line.dot_rate:.0%} "
            f"| {line.combine_rate:.1f} ({line.combine_ms:.1f} ms) | {line.combine_rate / line.dot_rate:.0%} "
            f"| {line.copy_rate:.1f} ({line.copy_ms:.1f} ms) | {line.dot_rate:.1f} | {error} |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


if __name__ == "__main__":
    main()
