"""Who holds a run's snapshots: the service, or the trainer in a ring of its own. Checks the choice, and puts it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from koopcast.client import Client
from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.budget import WaitBudget
from koopcast.hook.buffers import BufferPool
from koopcast.hook.displacements import Displacements, FetchedDisplacements, HeldDisplacements
from koopcast.hook.held_job import HeldJob, JobSettings
from koopcast.hook.held_rows import CombinedDisplacements, Ring, RingPool, RowsJob, Shards
from koopcast.hook.link import Link
from koopcast.hook.loop import Trainer
from koopcast.hook.ranks import Ranks, process_count
from koopcast.hook.sharding import are_sharded, check_sharding, local_shapes
from koopcast.hook.shared_rows import SharedRowsJob
from koopcast.hook.stats import Counters
from koopcast.hook.together import SharedDisplacements
from koopcast.window.held import TrainerWindow

__all__ = ["HOLDERS", "Holding", "RingPlan", "Snapshots", "check_holding", "hold_at_service", "hold_in_ring"]

Snapshots = Literal["auto", "server", "trainer"]
HOLDERS: Final[tuple[Snapshots, ...]] = ("auto", "server", "trainer")

_LARGE_BYTES: Final = 32 << 20
"""A model from this size on has one snapshot buffer. A second one only saves snapshots that come while the last one is
still on its way, and is not worth as much memory as the model takes."""


@dataclass(frozen=True, slots=True)
class RingPlan:
    """A ring in the trainer.

    Attributes:
        device: where it lives.
        pinned: whether its snapshots are page-locked: on the CPU of parameters on a GPU.
        shard: the part of each tensor that is here; None: all of it.
    """

    device: torch.device
    pinned: bool
    shard: dict[str, tuple[int, ...]] | None


@dataclass(frozen=True, slots=True)
class Holding:
    """What holds the snapshots, as the hook's other parts use it.

    Attributes:
        pool: where snapshots are copied to.
        link: to the service, not started.
        displacements: makes what finds the displacements of one attempt.
        job: the job that the link holds.
    """

    pool: BufferPool
    link: Link
    displacements: Callable[[], Displacements]
    job: HeldJob


def check_holding(
    snapshots: str, window_device: Any, trainer: Trainer, job: JobSettings, lag: int
) -> RingPlan | None:
    """The ring to make; None where the service holds the snapshots.

    Raises:
        ArgumentTypeError, ArgumentValueError: settings that do not go together.
    """
    parameters = trainer.selection.parameters()
    check_sharding(trainer.model, parameters, process_count())
    sharded = are_sharded(parameters)
    if snapshots == "server" and sharded:
        raise ArgumentValueError(
            "the model's parameters are sharded (DTensors), and no process has a whole snapshot to push: use "
            'snapshots="trainer"',
            field="snapshots",
        )
    if snapshots == "server" or (snapshots == "auto" and not sharded):
        if window_device is not None:
            raise ArgumentValueError(
                'window_device is where the trainer keeps its ring: use it with snapshots="trainer"',
                field="window_device",
            )
        return None
    _check_ring(job, lag)
    plan = _plan(window_device, parameters, sharded=sharded)
    TrainerWindow.bytes_needed(
        job.tensors, job.operator, shard=plan.shard
    )  # refuses operators that cannot be
    return plan


def hold_at_service(
    client: Client, settings: JobSettings, budget: WaitBudget, counters: Counters, *, pinned: bool, lag: int
) -> Holding:
    """Push snapshots from buffers; fetch displacements, or, after a lag, use those that came with the answer."""
    snapshot_bytes = sum(spec.nbytes for spec in settings.tensors.values())
    pool = BufferPool(settings.tensors, 1 if snapshot_bytes >= _LARGE_BYTES else 2, pinned=pinned)
    job = HeldJob(client, settings, counters)
    link = Link(client, job, pool, counters)

    def displacements() -> Displacements:
        return HeldDisplacements() if lag else FetchedDisplacements(link.put, budget)

    return Holding(pool, link, displacements, job)


def hold_in_ring(
    client: Client,
    settings: JobSettings,
    plan: RingPlan,
    budget: WaitBudget,
    counters: Counters,
    ranks: Ranks,
) -> Holding:
    """Keep snapshots in a ring, or this rank's part of it; push rows, and combine displacements."""
    window = TrainerWindow(
        settings.tensors, settings.operator, shard=plan.shard, device=plan.device, pinned=plan.pinned
    )
    ring = Ring(window)
    pool = RingPool(ring)
    if plan.shard is None:
        job = RowsJob(client, settings, ring, Shards(), counters)
    else:
        job = SharedRowsJob(client, settings, ring, Shards(ranks.index, ranks.count), counters)
    link = Link(client, job, pool, counters)

    def displacements() -> Displacements:
        if plan.shard is None:
            return CombinedDisplacements(ring, budget)
        return SharedDisplacements(ring, budget, ranks)

    return Holding(pool, link, displacements, job)


def _check_ring(job: JobSettings, lag: int) -> None:
    if lag >= job.stride:
        raise ArgumentValueError(
            f'with snapshots="trainer" lag must be less than every ({job.stride}), not {lag}: the ring moves on with the '
            "next snapshot, and the answer would be one for snapshots that it no longer holds",
            field="lag",
        )
    if job.operator.mask_tolerance is not None:
        raise ArgumentValueError(
            "mask_tolerance looks at single weights, which a service that gets inner products alone does not know: leave "
            'it out, or use snapshots="server"',
            field="mask_tolerance",
        )
    if job.encoding != "raw" or job.wire_dtype is not None:
        field = "encoding" if job.encoding != "raw" else "wire_dtype"
        raise ArgumentValueError(
            f'{field} says how weights travel; with snapshots="trainer" none do: leave it out', field=field
        )


def _plan(window_device: Any, parameters: dict[str, Any], *, sharded: bool) -> RingPlan:
    devices = [_device_of(parameter) for parameter in parameters.values()]
    try:
        device = devices[0] if window_device is None else torch.device(window_device)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ArgumentTypeError(
            f"window_device must be a device that is here, not {window_device!r}: {error}",
            field="window_device",
        ) from error
    pinned = device.type == "cpu" and any(one.type == "cuda" for one in devices)
    return RingPlan(device, pinned, local_shapes(parameters) if sharded else None)


def _device_of(parameter: Tensor) -> torch.device:
    return parameter.device
