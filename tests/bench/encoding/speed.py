"""What differences cost in time: pushes of a large snapshot over loopback."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

import koopcast
from encoding.variants import RAW, Variant

__all__ = ["speed_table"]

MIB = 1 << 20
SNAPSHOT_BYTES = 128 * MIB
PUSHES = 7
VARIANTS = (RAW, Variant("delta", "bfloat16"), Variant("delta", "float16"), Variant("delta-int8", "float32"))


@dataclass(frozen=True, slots=True)
class _Cost:
    sent: float
    seconds: float
    cpu_seconds: float


def speed_table(client: koopcast.Client) -> str:
    """Time of a push, and the link below which sending fewer bytes is faster."""
    costs = {variant: _measured(client, variant) for variant in VARIANTS}
    raw = costs[RAW]
    lines = [
        "| snapshots | bytes sent, MiB | push, s | of it the trainer's CPU, s | faster than raw on links below |",
        "|---|---|---|---|---|",
    ]
    for variant, cost in costs.items():
        extra = cost.seconds - raw.seconds
        link = (raw.sent - cost.sent) / extra / 1e6 if extra > 0 else float("inf")
        below = "-" if variant == RAW else f"{link:.0f} MB/s" if np.isfinite(link) else "any"
        sent = cost.sent / MIB
        lines.append(f"| {variant} | {sent:.1f} | {cost.seconds:.3f} | {cost.cpu_seconds:.3f} | {below} |")
    return "\n".join(lines)


def _measured(client: koopcast.Client, variant: Variant) -> _Cost:
    """Medians; the first push, which is raw, is not among them."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(SNAPSHOT_BYTES // 4, dtype=np.float32)
    moves = generator.standard_normal(len(weights), dtype=np.float32) * np.float32(1e-3)
    operator = koopcast.Operator(window=3)
    name = f"speed-{variant.encoding}-{variant.wire_dtype}"
    seconds, cpu, sent = [], [], []
    with client.open_job(
        name, {"w": weights}, stride=1, operator=operator, keep_weights=False, **variant.options
    ) as job:
        job.push(0, {"w": weights})
        for step in range(1, PUSHES + 1):
            weights += moves
            before, wall, used = job.bytes_sent, time.perf_counter(), time.process_time()
            job.push(step, {"w": weights})
            seconds.append(time.perf_counter() - wall)
            cpu.append(time.process_time() - used)
            sent.append(job.bytes_sent - before)
    return _Cost(statistics.median(sent), statistics.median(seconds), statistics.median(cpu))
