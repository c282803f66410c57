"""From a job's window to answers in Gram space: group by group, a bounded number of blocks at a time.

Part of the engine's room. It asks the window what it can tell of a group (Gram matrices, the vectors themselves, or R
factors), has `koopman` solve it, and puts the pieces together again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, BlockPlan
from koopcast.window import Segment, Window
from koopcast_server.gram_store import GramStore
from koopcast_server.koopman import (
    Modes,
    OperatorSettings,
    PredictionBatch,
    Products,
    Report,
    Resampling,
    Source,
    Streamed,
    Vectors,
    joined,
    joined_products,
    predict,
    report,
)

__all__ = ["Horizons", "NamedMode", "Part", "Solved", "Solver", "Store"]

Store = Window | Segment | GramStore
"""What tells of a job's blocks: a window, a segment's factors, or the products of a window that is elsewhere."""

_SCRATCH_BYTES: Final = 64 << 20
"""Float64 numbers of one batch of blocks under way, more or less."""
_PENDING: Final = 64
"""Pairs beside the R factor of short blocks."""
_ARRAYS: Final = 12
"""So many arrays as large as a block's inputs are alive at once, for each candidate."""


@dataclass(frozen=True, slots=True)
class Horizons:
    """How far to look, in strides of the window's clock.

    Attributes:
        strides: horizons from `offset` on, each > 0.
        offset: from the time of the last snapshot to where displacements start, >= 0.
        resampling: to a uniform clock; None: snapshots are uniform in steps.
    """

    strides: tuple[float, ...]
    offset: float = 0.0
    resampling: Resampling | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Displacements of blocks ``first:stop`` of a group: coefficients, or the values themselves.

    Attributes:
        group: number of the group.
        first: first block within it.
        stop: one past the last.
        velocity_coefficients: (b, M) float64.
        last_coefficients: (b,) float64.
        values: (b, s) float64; None: see the coefficients.
    """

    group: int
    first: int
    stop: int
    velocity_coefficients: Tensor
    last_coefficients: Tensor
    values: Tensor | None


@dataclass(frozen=True, slots=True)
class Solved:
    """All blocks at one horizon.

    Attributes:
        parts: what moves them.
        moved: (B,) bool, by block number.
        report: by block number.
    """

    parts: tuple[Part, ...]
    moved: Tensor
    report: Report


@dataclass(frozen=True, slots=True)
class NamedMode:
    """One mode of a block, as `koopman.Modes` has it."""

    eigenvalue: complex
    energy: float
    decay_strides: float
    residual: float


class _Span(NamedTuple):
    """Blocks ``first:stop`` of a group."""

    group: int
    first: int
    stop: int

    @property
    def blocks(self) -> int:
        return self.stop - self.first


class Solver:
    """Answers from one job's window. Knows its blocks and how to read and write them."""

    def __init__(self, store: Store, plan: BlockPlan) -> None:
        """Solve for the blocks of `plan`, whose snapshots `store` holds."""
        self._store = store
        self._plan = plan
        self._order = _by_number(plan)

    def solve(self, settings: OperatorSettings, asked: Horizons) -> list[Solved]:
        """Predict all blocks, for each horizon.

        Raises:
            TooFewSnapshotsError: the window holds too few snapshots.
        """
        parts: list[list[Part]] = [[] for _ in asked.strides]
        moved: list[list[Tensor]] = [[] for _ in asked.strides]
        reports: list[list[Report]] = [[] for _ in asked.strides]
        for spans, source in self._sources(settings):
            batch = predict(source, settings, asked.strides, asked.offset, asked.resampling)
            for index in range(len(asked.strides)):
                parts[index] += _parts(spans, batch, index)
                moved[index].append(batch.moved[index])
                reports[index].append(batch.reports[index])
        return [
            Solved(tuple(some), self._by_number(torch.cat(moves)), self._reported(joined(told)))
            for some, moves, told in zip(parts, moved, reports, strict=True)
        ]

    def describe(
        self, settings: OperatorSettings, strides: float, blocks: range
    ) -> tuple[Report, list[tuple[NamedMode, ...]]]:
        """Reports and modes of some blocks, at least one, by their numbers.

        Raises:
            TooFewSnapshotsError: the window holds too few snapshots.
        """
        reports: list[Report] = []
        modes: list[tuple[NamedMode, ...]] = []
        numbers: list[int] = []
        for spans, source in self._sources(settings, blocks):
            told, its = report(source, settings, strides)
            reports.append(told)
            modes += _named(its, told.rank)
            for span in spans:
                numbers += self._plan.groups[span.group].numbers[span.first : span.stop]
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        return joined(reports).take(torch.tensor(order)), [modes[position] for position in order]

    def write(self, solved: Solved, out: Tensor) -> None:
        """Write the displacement into `out`, (n,) on the window's device, of any floating dtype."""
        assert not isinstance(self._store, GramStore)  # noqa: S101  # for the type checker: it has no arrays
        for number, group in itertools.groupby(solved.parts, key=lambda part: part.group):
            parts = list(group)
            if isinstance(self._store, Window) and self._store.is_dual(number):
                velocities = torch.cat([part.velocity_coefficients for part in parts])
                last = torch.cat([part.last_coefficients for part in parts])
                self._store.combine(number, velocities, last, out)
                continue
            for part in parts:
                if part.values is not None:
                    self._store.scatter(number, part.first, part.stop, part.values, out)

    def coefficients(self, solved: Solved) -> tuple[Tensor, Tensor]:
        """(B, M) of the velocities, oldest first, and (B,) of the last snapshot, float64 by block number.

        Only where all blocks are known by their Gram matrices.
        """
        velocity = torch.cat([part.velocity_coefficients for part in solved.parts])
        last = torch.cat([part.last_coefficients for part in solved.parts])
        return self._by_number(velocity), self._by_number(last)

    def _sources(
        self, settings: OperatorSettings, wanted: range | None = None
    ) -> Iterator[tuple[list[_Span], Source]]:
        """Batches of blocks, in the order of the groups, and what the window tells of them.

        Those of the `wanted` numbers only. Gram matrices of several groups are one batch: they are of one size.
        """
        dual: list[_Span] = []
        for number, group in enumerate(self._plan.groups):
            low, high = 0, group.count
            if wanted is not None:
                low = bisect.bisect_left(group.numbers, wanted.start)
                high = bisect.bisect_left(group.numbers, wanted.stop)
            step = _batch(self._store, number, group, settings)
            for span in self._spans(number, low, high, step):
                if dual and (not self._is_dual(number) or _blocks(dual) + span.blocks > step):
                    yield dual, self._products(dual)
                    dual = []
                if self._is_dual(number):
                    dual.append(span)
                else:
                    yield [span], self._vectors(span)
        if dual:
            yield dual, self._products(dual)

    def _spans(self, group: int, low: int, high: int, step: int) -> Iterator[_Span]:
        store = self._store
        runs = store.runs(group, low, high) if isinstance(store, Segment) else [(low, high)]
        for begin, end in runs:
            for first in range(begin, end, step):
                yield _Span(group, first, min(first + step, end))

    def _is_dual(self, group: int) -> bool:
        return not isinstance(self._store, Segment) and self._store.is_dual(group)

    def _products(self, spans: Sequence[_Span]) -> Products:
        """The Gram matrices of blocks of several groups, one after the other."""
        assert not isinstance(self._store, Segment)  # noqa: S101  # for the type checker: it has no Gram matrices
        told = [self._store.products(*span) for span in spans]
        sizes = [float(self._plan.groups[span.group].size) for span in spans]
        counts = torch.tensor([span.blocks for span in spans])
        return joined_products(
            [Products(**one._asdict()) for one in told if one is not None],
            torch.tensor(sizes, dtype=torch.float64).repeat_interleave(counts),
        )

    def _vectors(self, span: _Span) -> Source:
        store = self._store
        assert not isinstance(store, GramStore)  # noqa: S101  # for the type checker: it has Gram matrices only
        if isinstance(store, Window):
            return Vectors(**store.vectors(*span)._asdict())
        told = store.pairs(*span)
        return Streamed(
            factor=told.factor,
            vectors=told.vectors,
            last=told.last,
            snapshots=store.snapshots_held,
            held_out=max(
                1, store.tail - 1
            ),  # the first of the tail's pairs tells how fast the block was going
            snapshot_epsilon=told.snapshot_epsilon,
        )

    def _by_number(self, values: Tensor) -> Tensor:
        return values if self._order is None else values[self._order]

    def _reported(self, told: Report) -> Report:
        return told if self._order is None else told.take(self._order)


def _blocks(spans: Sequence[_Span]) -> int:
    return sum(span.blocks for span in spans)


def _parts(spans: Sequence[_Span], batch: PredictionBatch, index: int) -> Iterator[Part]:
    """One horizon's answer, cut into the spans that it is made of."""
    begin = 0
    for span in spans:
        own = slice(begin, begin + span.blocks)
        begin += span.blocks
        values = None if batch.displacement is None else batch.displacement[index, own]
        yield Part(
            *span, batch.velocity_coefficients[index, own], batch.last_coefficients[index, own], values
        )


def _batch(store: Store, number: int, group: BlockGroup, settings: OperatorSettings) -> int:
    """Blocks of a group that are solved at once."""
    if isinstance(store, Segment):
        rows, columns = group.size, 4 * group.size + _PENDING
    else:
        columns = store.length
        rows = store.length if store.is_dual(number) else group.size
    rows *= settings.delays + 1
    arrays = _ARRAYS + 4 * len(settings.candidates(columns))
    return max(1, _SCRATCH_BYTES // (8 * rows * columns * arrays))


def _by_number(plan: BlockPlan) -> Tensor | None:
    """Positions, in the order of the groups, of the blocks by their numbers; None where that is the same."""
    starts = [group.numbers[0] for group in plan.groups]
    ends = [group.numbers[-1] for group in plan.groups]
    if all(end < start for end, start in zip(ends, starts[1:], strict=False)):
        return None
    return torch.tensor(list(itertools.chain.from_iterable(group.numbers for group in plan.groups))).argsort()


def _named(modes: Modes, ranks: Tensor) -> list[tuple[NamedMode, ...]]:
    columns = zip(
        modes.eigenvalues.tolist(),
        modes.energies.tolist(),
        modes.decay_strides.tolist(),
        modes.residuals.tolist(),
        strict=True,
    )
    return [
        tuple(itertools.starmap(NamedMode, itertools.islice(zip(*block, strict=True), rank)))
        for rank, block in zip(ranks.tolist(), columns, strict=True)
    ]
