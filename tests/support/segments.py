"""A segment's R factors brought up to date, all blocks alike: what tests compare with the pairs themselves."""

from __future__ import annotations

import torch

from koopcast.window import Segment, SegmentPairs, absorb


def up_to_date(
    segment: Segment, group: int, first: int, stop: int, forgetting: float | None = None
) -> SegmentPairs:
    """R of all pairs but the segment's tail, and the vectors after it; of blocks in any runs."""
    if first == stop:  # no block: as many vectors as any would have
        one = up_to_date(segment, group, 0, 1, forgetting)
        return SegmentPairs(one.factor[:0], one.vectors[:0], one.absorbed, one.last[:0], one.snapshot_epsilon)
    rho = segment.forgetting if forgetting is None else forgetting
    found = [
        _absorbed(segment.pairs(group, low, high), segment.tail, rho)
        for low, high in segment.runs(group, first, stop)
    ]
    return SegmentPairs(
        factor=torch.cat([one.factor for one in found]),
        vectors=torch.cat([one.vectors for one in found]),
        absorbed=found[0].absorbed,
        last=torch.cat([one.last for one in found]),
        snapshot_epsilon=found[0].snapshot_epsilon,
    )


def _absorbed(pairs: SegmentPairs, tail: int, forgetting: float) -> SegmentPairs:
    ready = max(0, pairs.vectors.shape[1] - 1 - tail)
    return SegmentPairs(
        factor=absorb(pairs.factor, pairs.vectors[:, : ready + 1], forgetting) if ready else pairs.factor,
        vectors=pairs.vectors[:, ready:].contiguous(),
        absorbed=pairs.absorbed + ready,
        last=pairs.last,
        snapshot_epsilon=pairs.snapshot_epsilon,
    )
