from koopcast.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SnapshotOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_OUTCOME_UNSPECIFIED: _ClassVar[SnapshotOutcome]
    SNAPSHOT_OUTCOME_ACCEPTED: _ClassVar[SnapshotOutcome]
    SNAPSHOT_OUTCOME_DUPLICATE: _ClassVar[SnapshotOutcome]
    SNAPSHOT_OUTCOME_SUPERSEDED: _ClassVar[SnapshotOutcome]
SNAPSHOT_OUTCOME_UNSPECIFIED: SnapshotOutcome
SNAPSHOT_OUTCOME_ACCEPTED: SnapshotOutcome
SNAPSHOT_OUTCOME_DUPLICATE: SnapshotOutcome
SNAPSHOT_OUTCOME_SUPERSEDED: SnapshotOutcome

class SnapshotHeader(_message.Message):
    __slots__ = ("job", "lease_id", "segment", "step", "tensors", "total_bytes", "digest", "averaging", "clock", "encoding", "shard_index", "resume", "spec_digest", "upload_id", "reference_segment", "reference_step")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    AVERAGING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_STEP_FIELD_NUMBER: _ClassVar[int]
    job: str
    lease_id: str
    segment: int
    step: int
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    total_bytes: int
    digest: bytes
    averaging: int
    clock: float
    encoding: _tensor_pb2.Encoding
    shard_index: int
    resume: bool
    spec_digest: bytes
    upload_id: bytes
    reference_segment: int
    reference_step: int
    def __init__(self, job: _Optional[str] = ..., lease_id: _Optional[str] = ..., segment: _Optional[int] = ..., step: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., averaging: _Optional[int] = ..., clock: _Optional[float] = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., shard_index: _Optional[int] = ..., resume: bool = ..., spec_digest: _Optional[bytes] = ..., upload_id: _Optional[bytes] = ..., reference_segment: _Optional[int] = ..., reference_step: _Optional[int] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("offset", "data", "crc32c", "shared_position", "shared_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    SHARED_POSITION_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    crc32c: int
    shared_position: int
    shared_bytes: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., shared_position: _Optional[int] = ..., shared_bytes: _Optional[int] = ...) -> None: ...

class SnapshotCommit(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class PushSnapshotRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: SnapshotHeader
    chunk: SnapshotChunk
    commit: SnapshotCommit
    def __init__(self, header: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., commit: _Optional[_Union[SnapshotCommit, _Mapping]] = ...) -> None: ...

class SnapshotReady(_message.Message):
    __slots__ = ("offset", "unacknowledged_bytes_limit", "held")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    UNACKNOWLEDGED_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    offset: int
    unacknowledged_bytes_limit: int
    held: bool
    def __init__(self, offset: _Optional[int] = ..., unacknowledged_bytes_limit: _Optional[int] = ..., held: bool = ...) -> None: ...

class SnapshotAck(_message.Message):
    __slots__ = ("committed_offset",)
    COMMITTED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    committed_offset: int
    def __init__(self, committed_offset: _Optional[int] = ...) -> None: ...

class SnapshotResult(_message.Message):
    __slots__ = ("outcome", "snapshots_held")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_HELD_FIELD_NUMBER: _ClassVar[int]
    outcome: SnapshotOutcome
    snapshots_held: int
    def __init__(self, outcome: _Optional[_Union[SnapshotOutcome, str]] = ..., snapshots_held: _Optional[int] = ...) -> None: ...

class PushSnapshotResponse(_message.Message):
    __slots__ = ("ready", "ack", "result")
    READY_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ready: SnapshotReady
    ack: SnapshotAck
    result: SnapshotResult
    def __init__(self, ready: _Optional[_Union[SnapshotReady, _Mapping]] = ..., ack: _Optional[_Union[SnapshotAck, _Mapping]] = ..., result: _Optional[_Union[SnapshotResult, _Mapping]] = ...) -> None: ...

class PushShortSnapshotRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: SnapshotHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushShortSnapshotResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: SnapshotResult
    def __init__(self, result: _Optional[_Union[SnapshotResult, _Mapping]] = ...) -> None: ...

class PushGramRowRequest(_message.Message):
    __slots__ = ("job", "lease_id", "segment", "step", "averaging", "clock", "shard_index", "velocity_products", "weight_products", "weights_squared")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AVERAGING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    VELOCITY_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SQUARED_FIELD_NUMBER: _ClassVar[int]
    job: str
    lease_id: str
    segment: int
    step: int
    averaging: int
    clock: float
    shard_index: int
    velocity_products: _containers.RepeatedScalarFieldContainer[float]
    weight_products: _containers.RepeatedScalarFieldContainer[float]
    weights_squared: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, job: _Optional[str] = ..., lease_id: _Optional[str] = ..., segment: _Optional[int] = ..., step: _Optional[int] = ..., averaging: _Optional[int] = ..., clock: _Optional[float] = ..., shard_index: _Optional[int] = ..., velocity_products: _Optional[_Iterable[float]] = ..., weight_products: _Optional[_Iterable[float]] = ..., weights_squared: _Optional[_Iterable[float]] = ...) -> None: ...

class PushGramRowResponse(_message.Message):
    __slots__ = ("outcome", "snapshots_held")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_HELD_FIELD_NUMBER: _ClassVar[int]
    outcome: SnapshotOutcome
    snapshots_held: int
    def __init__(self, outcome: _Optional[_Union[SnapshotOutcome, str]] = ..., snapshots_held: _Optional[int] = ...) -> None: ...
