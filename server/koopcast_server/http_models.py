"""What the HTTP API answers, as pydantic models: every field with its meaning and unit."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from koopcast.status import JobStatus, Lease
from koopcast_server.http_operator_models import (
    Answer,
    BlockModel,
    BlocksSummary,
    Measure,
    Model,
    OperatorModel,
)

__all__ = [
    "Alive",
    "Health",
    "JobDetail",
    "JobList",
    "JobSummary",
    "LeaseModel",
    "Problem",
    "Ready",
    "VersionInfo",
]


class Alive(Model):
    """The process answers."""

    status: Literal["alive"] = Field(
        default="alive", description="Always `alive`; no answer means that it is not."
    )


class Ready(Model):
    """The service takes work."""

    status: Literal["ready"] = Field(
        default="ready", description="Always `ready`; else the answer is a 503 problem."
    )


class Health(Model):
    """The service at a glance. Open to everybody, so it names no job."""

    status: Literal["ready", "unavailable"] = Field(description="`unavailable` comes with HTTP status 503.")
    reason: str | None = Field(description="Why it is unavailable, e.g. `DRAINING`; null while it is ready.")
    version: str = Field(description="Version of the service.")
    device: str = Field(description="Device that holds the windows and computes.")
    jobs: int = Field(ge=0, description="Jobs held, of all identities.")
    memory_bytes: int = Field(ge=0, description="Device memory of all jobs. Unit: bytes.")
    memory_limit_bytes: int = Field(ge=0, description="Limit of that memory. Unit: bytes.")


class VersionInfo(Model):
    """What runs here."""

    version: str = Field(description="Version of the service.")
    protocol_version: int = Field(ge=1, description="Newest gRPC protocol version it speaks.")
    python: str = Field(description="Version of Python.")
    torch: str = Field(description="Version of PyTorch.")
    device: str = Field(description="Device that holds the windows and computes.")


class LeaseModel(Model):
    """Who writes to a job."""

    held: bool = Field(description="Whether somebody does now.")
    expires_in_seconds: float = Field(
        ge=0, description="Time until it expires without a call; 0 where nobody holds it. Unit: seconds."
    )
    holder: str = Field(description="Version string of the holder; empty where nobody holds it.")

    @classmethod
    def of(cls, lease: Lease) -> Self:
        """The model of a lease."""
        return cls(held=lease.held, expires_in_seconds=lease.expires_in_seconds, holder=lease.holder)


class JobSummary(Model):
    """The state of one job, its blocks apart."""

    name: str = Field(description="The job's name.")
    owner: str = Field(description="Identity that opened it: the caller's.")
    segment: int = Field(ge=0, description="Segment of the newest snapshot; 0 before the first.")
    step: int | None = Field(description="Trainer step of the newest snapshot; null while none is held.")
    stride: int = Field(ge=1, description="Trainer steps between two snapshots.")
    snapshots_held: int = Field(ge=0, description="Weight snapshots in the window.")
    snapshots_accepted: int = Field(ge=0, description="Snapshots accepted since the job was made.")
    tensors: int = Field(ge=0, description="Number of tensors in a snapshot.")
    parameters: int = Field(ge=0, description="Number of parameters in a snapshot.")
    window_holder: str = Field(description="Where the snapshots are: server or trainer.")
    shard_count: int = Field(ge=1, description="Trainers that hold a part of the window each.")
    window_dtype: str = Field(description="Element type of the window on the device.")
    wire_dtype: str = Field(description="Element type of answers.")
    encoding: str = Field(description="How snapshots may travel, besides raw: raw, delta or delta-int8.")
    operator: OperatorModel = Field(description="Operator settings.")
    memory_bytes: int = Field(ge=0, description="Device memory the job holds. Unit: bytes.")
    bytes_received: int = Field(ge=0, description="Snapshot bytes accepted so far. Unit: bytes.")
    bytes_sent: int = Field(ge=0, description="Displacement bytes sent so far. Unit: bytes.")
    predictions: int = Field(ge=0, description="Predictions answered.")
    jumps_accepted: int = Field(ge=0, description="Jumps the trainer reported as accepted.")
    jumps_rejected: int = Field(ge=0, description="Jumps the trainer reported as rejected.")
    last_prediction_seconds: float | None = Field(
        description="From the last prediction's request to its first report; null without. Unit: seconds."
    )
    created: datetime = Field(description="When the job was made (UTC).")
    pushed: datetime | None = Field(
        description="When the newest snapshot was accepted (UTC); null without one."
    )
    lease: LeaseModel = Field(description="Who writes to it.")
    predictability: Measure = Field(
        description="Share of the squared displacement that the operators foretold in their last back-test, 0 to 1: near "
        "1 jumps pay, near 0 noise moves the weights. Null before the first back-test."
    )

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """The model of a job's state, without its blocks."""
        return cls.model_validate(_summary_fields(status))


class JobDetail(JobSummary):
    """The state of one job, with the operators of its window as it is now."""

    blocks_total: int = Field(ge=0, description="Blocks of the partition; 0 while it has no operator.")
    blocks: list[BlockModel] = Field(
        description="The blocks that were asked for, in the snapshot's order; 256 unless asked otherwise."
    )
    summary: BlocksSummary | None = Field(
        description="All blocks together, those not told of too; null while it has no operator."
    )
    trusted_horizon_steps: Measure = Field(
        description="Trainer steps the job is trusted to look ahead: more after kept jumps, fewer after refused ones."
    )
    history: list[Answer] = Field(description="What earlier answers said, oldest first: the newest 512.")

    @classmethod
    def with_blocks(cls, status: JobStatus) -> Self:
        """The model of a job's state, with the blocks that it tells of."""
        summary = status.summary
        more = {
            "blocks_total": 0 if summary is None else summary.blocks,
            "blocks": [BlockModel.of(block) for block in status.blocks],
            "summary": None if summary is None else BlocksSummary.of(summary),
            "trusted_horizon_steps": status.trusted_horizon_steps,
            "history": [Answer.of(point) for point in status.history],
        }
        return cls.model_validate(_summary_fields(status) | more)


class JobList(Model):
    """The caller's jobs, by name."""

    jobs: list[JobSummary] = Field(description="One page of them, without their blocks.")
    next_page_token: str = Field(description="`page_token` of the next page; empty at the end.")


class Problem(Model):
    """An error (RFC 9457)."""

    type: Literal["about:blank"] = Field(
        default="about:blank", description="The kind is told by `status` and `reason`."
    )
    title: str = Field(description="The HTTP status in words.")
    status: int = Field(ge=400, le=599, description="The HTTP status.")
    detail: str = Field(description="What is wrong, for people.")
    reason: str = Field(description="What is wrong, for programs: a constant in UPPER_SNAKE_CASE.")
    details: dict[str, str] = Field(description="The names and numbers that `detail` speaks of.")


def _summary_fields(status: JobStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "owner": status.owner,
        "segment": status.segment,
        "step": status.step,
        "stride": status.stride,
        "snapshots_held": status.snapshots_held,
        "snapshots_accepted": status.snapshots_accepted,
        "tensors": len(status.tensors),
        "parameters": status.parameters,
        "window_holder": status.window_holder,
        "shard_count": status.shard_count,
        "window_dtype": status.window_dtype,
        "wire_dtype": status.wire_dtype,
        "encoding": status.encoding,
        "operator": OperatorModel.of(status.operator),
        "memory_bytes": status.memory_bytes,
        "bytes_received": status.bytes_received,
        "bytes_sent": status.bytes_sent,
        "predictions": status.predictions,
        "jumps_accepted": status.jumps_accepted,
        "jumps_rejected": status.jumps_rejected,
        "last_prediction_seconds": status.last_prediction_seconds if status.predictions else None,
        "created": status.created,
        "pushed": status.pushed,
        "lease": LeaseModel.of(status.lease),
        "predictability": status.predictability,
    }
