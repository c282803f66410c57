"""Messages as a client of another make might send them: over the bare stubs, checked by nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import grpc
import numpy as np

import koopcast
from koopcast.messages import tensors_to_messages
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
    tensor_pb2,
)
from koopcast.wire import checksum


class Stubs:
    """The three services over one channel of its own."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(channel)
        self.predictions = prediction_pb2_grpc.PredictionServiceStub(channel)

    def open(self, name: str, spec: job_pb2.JobSpec) -> job_pb2.OpenJobResponse:
        request = job_pb2.OpenJobRequest(name=name, spec=spec, protocol_version=1)
        response: job_pb2.OpenJobResponse = self.jobs.OpenJob(request, timeout=20)
        return response


@contextlib.contextmanager
def stubs(target: str) -> Iterator[Stubs]:
    """Stubs over a channel that shares no connection with others."""
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Stubs(channel)


def spec_of(*shapes: tuple[int, ...], stride: int = 1) -> job_pb2.JobSpec:
    """A job of float32 tensors."""
    tensors = [
        tensor_pb2.TensorSpec(name=f"t{index}", dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=shape)
        for index, shape in enumerate(shapes)
    ]
    return job_pb2.JobSpec(tensors=tensors, stride=stride)


def upload(
    job: koopcast.Job, tensors: Mapping[str, np.ndarray], step: int, segment: int | None = None
) -> list[snapshot_pb2.PushSnapshotRequest]:
    """Header, chunks, commit."""
    layout, request = job._layout, snapshot_pb2.PushSnapshotRequest
    data = layout.pack(tensors).tobytes()
    header = snapshot_pb2.SnapshotHeader(
        job=job.name,
        lease_id=job._lease_id,
        segment=job.segment if segment is None else segment,
        step=step,
        tensors=tensors_to_messages(layout.specs),
        total_bytes=len(data),
        digest=checksum(data).to_bytes(4, "big"),
    )
    chunks = [
        snapshot_pb2.SnapshotChunk(offset=start, data=data[start:stop], crc32c=checksum(data[start:stop]))
        for start, stop in layout.chunk_ranges()
    ]
    return [
        request(header=header),
        *(request(chunk=chunk) for chunk in chunks),
        request(commit=snapshot_pb2.SnapshotCommit()),
    ]
