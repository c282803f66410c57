"""A thousand nodes at once: a 784-512-512-10 network, against a copy of its window, and PyDMD looped over the nodes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.jobs import RANK, Job, Motion
from engine.measuring import apart, median_seconds, milliseconds, table
from engine.versus_pydmd import evaluate, pydmd_fit
from koopcast.operator import Operator
from koopcast.wire import TensorSpec

__all__ = ["compare"]

LENGTH = 12
WIDTHS = (784, 512, 512, 10)


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Unit: seconds; `alone`: nodes that PyDMD was looped over.

    Attributes:
        blocks: nodes.
        push: of one snapshot.
        solve: all nodes.
        combine: all weights, in new memory.
        copy: of 12 snapshots, into memory that was there already.
        pydmd: fit and evaluation of all nodes; of `looped` of them, times what is missing.
        looped: nodes that were fitted.
    """

    blocks: int
    push: float
    solve: float
    combine: float
    copy: float
    pydmd: float
    looped: int


def compare(threads: Sequence[int], rounds: int, looped: int) -> str:
    """The table: PyDMD over the first `looped` nodes of each matrix."""
    rows = []
    for count in threads:
        found = [apart(count, node_times, looped) for _ in range(rounds)]
        push, solve, combine, copy, pydmd = (
            statistics.median(getattr(one, name) for one in found)
            for name in ("push", "solve", "combine", "copy", "pydmd")
        )
        rows.append(
            [
                str(count),
                f"{found[0].blocks:,}",
                milliseconds(copy),
                milliseconds(push),
                milliseconds(solve),
                milliseconds(combine),
                f"{(solve + combine) / copy:.1f}",
                f"{milliseconds(pydmd)} ({found[0].looped:,} fitted)",
                f"{pydmd / (solve + combine):.0f}",
            ]
        )
    head = (
        "threads",
        "nodes",
        "copy of the window",
        "push",
        "solve",
        "combine",
        "(solve + combine) / copy",
        "PyDMD, node by node",
        "PyDMD / (solve + combine)",
    )
    return table(head, rows)


def node_times(looped: int) -> NodeTimes:
    """All of it, in this process."""
    job = Job(_network(), Operator(partition="node", window=LENGTH, rank=RANK))
    job.fill()
    push = median_seconds(job.publish, 7)
    job.refill()
    solved = job.solve()
    window, copied = torch.rand(LENGTH, job.elements), torch.rand(LENGTH, job.elements)
    copy = median_seconds(lambda: copied.copy_(window), 7)
    solve = median_seconds(job.solve, 7)
    combine = median_seconds(lambda: job.held.displacement(solved), 7)
    nodes = _node_matrices(job, looped)
    begin = time.perf_counter()
    for node in nodes:
        evaluate(pydmd_fit(node.numpy()), LENGTH)
    pydmd = (time.perf_counter() - begin) * job.held.block_count / len(nodes)
    return NodeTimes(job.held.block_count, push, solve, combine, copy, pydmd, len(nodes))


def _network() -> dict[str, TensorSpec]:
    specs = {}
    for number, (inputs, units) in enumerate(itertools.pairwise(WIDTHS)):
        specs[f"{number}.weight"] = TensorSpec("float32", (units, inputs))
        specs[f"{number}.bias"] = TensorSpec("float32", (units,))
    return specs


def _node_matrices(job: Job, looped: int) -> list[Tensor]:
    """(s, m) snapshots of nodes, a column each, contiguous by columns as PyDMD likes them."""
    motion = Motion(job.elements)
    snapshots = torch.empty(LENGTH, job.elements)
    for moment, row in enumerate(snapshots):
        motion.write(moment, row)
    found: list[Tensor] = []
    offset = 0
    for inputs, units in itertools.pairwise(WIDTHS):
        some = range(min(units, looped))
        bias = offset + inputs * units
        for unit in some:
            start = offset + unit * inputs
            rows = snapshots[:, [*range(start, start + inputs), bias + unit]]
            found.append(rows.t())
        offset = bias + units
    evaluate(pydmd_fit(found[0].numpy()), LENGTH)  # its imports, too, are not timed
    return found
