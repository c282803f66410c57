"""What is predicted of recorded runs when their snapshots travel in fewer bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import koopcast
from encoding.paths import PATHS, STRIDE, Path
from encoding.variants import RAW, VARIANTS, Variant

__all__ = ["HORIZONS", "Outcome", "Traffic", "error_table", "outcomes", "traffic_table"]

HORIZONS = (1, 4, 16, 64)
"""Strides."""
WINDOW_ENDS = tuple(range(15, 76, 5))
"""Snapshots after which a prediction is asked for."""

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One prediction.

    Attributes:
        path: name of the run.
        variant: how its snapshots came.
        horizon: strides ahead.
        error: |predicted - true| / |true|.
        gap: |predicted - predicted from raw snapshots| / |the latter|; NaN where the latter is zero.
        moved: whether the service offered to move.
    """

    path: str
    variant: Variant
    horizon: int
    error: float
    gap: float
    moved: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one run.

    Attributes:
        path: name of the run.
        variant: how it was sent.
        parameters: of the network.
        first: bytes of the first snapshot, which is raw.
        others: bytes of each later one.
        answer: bytes of each displacement.
    """

    path: str
    variant: Variant
    parameters: int
    first: int
    others: float
    answer: float


def outcomes(client: koopcast.Client, seeds: Iterable[int]) -> tuple[list[Outcome], list[Traffic]]:
    """Push every path in every variant, and predict from it."""
    found: list[Outcome] = []
    traffic: list[Traffic] = []
    for name, recipe in PATHS.items():
        for seed in seeds:
            path = recipe.path(seed)
            answers: dict[Variant, list[list[Floats | None]]] = {}
            for variant in VARIANTS:
                answers[variant], bytes_moved = _foretold(client, name, path, variant)
                if seed == 0:
                    traffic.append(bytes_moved)
                found.extend(_judged(name, path, variant, answers[variant], answers[RAW]))
    return found, traffic


def error_table(found: Sequence[Outcome]) -> str:
    """Median errors, in brackets the median gaps where both moved, and how often the service declined."""
    lines = [
        "| run | snapshots, answers | " + " | ".join(_strides(h) for h in HORIZONS) + " | declined |",
        "|---|---|" + "---|" * (len(HORIZONS) + 1),
    ]
    for (path, variant), some in _groups(found):
        cells = [_cell([one for one in some if one.horizon == h], variant) for h in HORIZONS]
        declined = 1 - statistics.mean(one.moved for one in some)
        lines.append(f"| {path} | {variant} | " + " | ".join(cells) + f" | {declined:.0%} |")
    return "\n".join(lines)


def traffic_table(traffic: Sequence[Traffic]) -> str:
    """Bytes of snapshots and answers of the largest network."""
    largest = max(one.parameters for one in traffic)
    path = next(one.path for one in traffic if one.parameters == largest)
    lines = [
        f"{largest} parameters in float32:\n",
        "| snapshots, answers | first snapshot, bytes | others, bytes | of raw | answer, bytes |",
        "|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {one.variant} | {one.first} | {one.others:.0f} | {one.others / one.first:.3f} | {one.answer:.0f} |"
        for one in traffic
        if one.path == path
    )
    return "\n".join(lines)


def _foretold(
    client: koopcast.Client, name: str, path: Path, variant: Variant
) -> tuple[list[list[Floats | None]], Traffic]:
    """For each window end and horizon the displacement, None where the service declines."""
    job_name = "".join(character if character.isalnum() else "-" for character in f"{name}-{variant}")
    found: list[list[Floats | None]] = []
    answered = 0
    with client.open_job(job_name, path.tensors(0), stride=STRIDE, **variant.options) as job:
        job.push(0, path.tensors(0))
        first = job.bytes_sent
        for number in range(1, WINDOW_ENDS[-1] + 1):
            job.push(number * STRIDE, path.tensors(number))
            if number in WINDOW_ENDS:
                answers = job.predict_ahead([float(h * STRIDE) for h in HORIZONS])
                found.append([_flat(answer) for answer in answers])
                answered += sum(answer.moved for answer in answers)
        others = (job.bytes_sent - first) / WINDOW_ENDS[-1]
        answer_bytes = job.bytes_received / answered if answered else 0.0
    parameters = path.snapshots.shape[1]
    return found, Traffic(name, variant, parameters, first, others, answer_bytes)


def _flat(answer: koopcast.Prediction) -> Floats | None:
    if not answer.moved:
        return None
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in answer.displacement.values()])


def _judged(
    name: str,
    path: Path,
    variant: Variant,
    answers: list[list[Floats | None]],
    from_raw: list[list[Floats | None]],
) -> Iterator[Outcome]:
    exact = path.snapshots.astype(np.float64)
    for end, some, raw in zip(WINDOW_ENDS, answers, from_raw, strict=True):
        for horizon, answer, other in zip(HORIZONS, some, raw, strict=True):
            truth = exact[end + horizon] - exact[end]
            given = np.zeros_like(truth) if answer is None else answer
            error = float(np.linalg.norm(given - truth) / np.linalg.norm(truth))
            gap = math.nan if other is None else float(np.linalg.norm(given - other) / np.linalg.norm(other))
            yield Outcome(name, variant, horizon, error, gap, answer is not None)


def _groups(found: Sequence[Outcome]) -> Iterator[tuple[tuple[str, Variant], list[Outcome]]]:
    by_group: dict[tuple[str, Variant], list[Outcome]] = {}
    for one in found:
        by_group.setdefault((one.path, one.variant), []).append(one)
    yield from by_group.items()


def _cell(some: Sequence[Outcome], variant: Variant) -> str:
    error = f"{statistics.median(one.error for one in some):.2g}"
    gaps = [one.gap for one in some if one.moved and not math.isnan(one.gap)]
    if variant == RAW:
        return error
    return f"{error} ({statistics.median(gaps):.2g})" if gaps else f"{error} (-)"


def _strides(count: int) -> str:
    return f"{count} stride" if count == 1 else f"{count} strides"
