from koopcast.v1 import operator_pb2 as _operator_pb2
from koopcast.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IfExists(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IF_EXISTS_UNSPECIFIED: _ClassVar[IfExists]
    IF_EXISTS_RESUME: _ClassVar[IfExists]
    IF_EXISTS_REPLACE: _ClassVar[IfExists]
    IF_EXISTS_ERROR: _ClassVar[IfExists]

class WindowHolder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WINDOW_HOLDER_UNSPECIFIED: _ClassVar[WindowHolder]
    WINDOW_HOLDER_SERVER: _ClassVar[WindowHolder]
    WINDOW_HOLDER_TRAINER: _ClassVar[WindowHolder]
IF_EXISTS_UNSPECIFIED: IfExists
IF_EXISTS_RESUME: IfExists
IF_EXISTS_REPLACE: IfExists
IF_EXISTS_ERROR: IfExists
WINDOW_HOLDER_UNSPECIFIED: WindowHolder
WINDOW_HOLDER_SERVER: WindowHolder
WINDOW_HOLDER_TRAINER: WindowHolder

class JobSpec(_message.Message):
    __slots__ = ("tensors", "stride", "operator", "window_dtype", "wire_dtype", "window_holder", "shard_count", "encoding")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    WINDOW_DTYPE_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_HOLDER_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    stride: int
    operator: _operator_pb2.OperatorSpec
    window_dtype: _tensor_pb2.ElementType
    wire_dtype: _tensor_pb2.ElementType
    window_holder: WindowHolder
    shard_count: int
    encoding: _tensor_pb2.Encoding
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., stride: _Optional[int] = ..., operator: _Optional[_Union[_operator_pb2.OperatorSpec, _Mapping]] = ..., window_dtype: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., wire_dtype: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., window_holder: _Optional[_Union[WindowHolder, str]] = ..., shard_count: _Optional[int] = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("name", "size_bytes", "nonce")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    nonce: bytes
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class OpenJobRequest(_message.Message):
    __slots__ = ("name", "spec", "if_exists", "take_over", "protocol_version", "client_version", "shard_index", "shared_lease_id", "shared_memory")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    IF_EXISTS_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARED_LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: JobSpec
    if_exists: IfExists
    take_over: bool
    protocol_version: int
    client_version: str
    shard_index: int
    shared_lease_id: str
    shared_memory: SharedMemory
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., if_exists: _Optional[_Union[IfExists, str]] = ..., take_over: bool = ..., protocol_version: _Optional[int] = ..., client_version: _Optional[str] = ..., shard_index: _Optional[int] = ..., shared_lease_id: _Optional[str] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class OpenJobResponse(_message.Message):
    __slots__ = ("lease_id", "lease_seconds", "memory_bytes", "segment", "step", "snapshots_held", "resumed", "protocol_version", "server_version", "lease_epoch", "worker_address", "worker_token", "spec_digest", "clock", "averaging", "shared_memory")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_HELD_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WORKER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    AVERAGING_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    lease_seconds: float
    memory_bytes: int
    segment: int
    step: int
    snapshots_held: int
    resumed: bool
    protocol_version: int
    server_version: str
    lease_epoch: int
    worker_address: str
    worker_token: str
    spec_digest: bytes
    clock: float
    averaging: int
    shared_memory: bool
    def __init__(self, lease_id: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., segment: _Optional[int] = ..., step: _Optional[int] = ..., snapshots_held: _Optional[int] = ..., resumed: bool = ..., protocol_version: _Optional[int] = ..., server_version: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., worker_address: _Optional[str] = ..., worker_token: _Optional[str] = ..., spec_digest: _Optional[bytes] = ..., clock: _Optional[float] = ..., averaging: _Optional[int] = ..., shared_memory: bool = ...) -> None: ...

class LeaseStatus(_message.Message):
    __slots__ = ("held", "expires_in_seconds", "holder")
    HELD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    held: bool
    expires_in_seconds: float
    holder: str
    def __init__(self, held: bool = ..., expires_in_seconds: _Optional[float] = ..., holder: _Optional[str] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("name", "owner", "spec", "segment", "step", "snapshots_held", "snapshots_accepted", "parameters", "memory_bytes", "bytes_received", "bytes_sent", "predictions", "jumps_accepted", "jumps_rejected", "last_prediction_seconds", "created_unix_seconds", "pushed_unix_seconds", "lease", "blocks", "summary", "trusted_horizon_steps", "history", "predictability")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_HELD_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    JUMPS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    JUMPS_REJECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_PREDICTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSHED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    PREDICTABILITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    owner: str
    spec: JobSpec
    segment: int
    step: int
    snapshots_held: int
    snapshots_accepted: int
    parameters: int
    memory_bytes: int
    bytes_received: int
    bytes_sent: int
    predictions: int
    jumps_accepted: int
    jumps_rejected: int
    last_prediction_seconds: float
    created_unix_seconds: float
    pushed_unix_seconds: float
    lease: LeaseStatus
    blocks: _containers.RepeatedCompositeFieldContainer[_operator_pb2.BlockReport]
    summary: _operator_pb2.BlockSummary
    trusted_horizon_steps: float
    history: _containers.RepeatedCompositeFieldContainer[HistoryPoint]
    predictability: float
    def __init__(self, name: _Optional[str] = ..., owner: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., segment: _Optional[int] = ..., step: _Optional[int] = ..., snapshots_held: _Optional[int] = ..., snapshots_accepted: _Optional[int] = ..., parameters: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., predictions: _Optional[int] = ..., jumps_accepted: _Optional[int] = ..., jumps_rejected: _Optional[int] = ..., last_prediction_seconds: _Optional[float] = ..., created_unix_seconds: _Optional[float] = ..., pushed_unix_seconds: _Optional[float] = ..., lease: _Optional[_Union[LeaseStatus, _Mapping]] = ..., blocks: _Optional[_Iterable[_Union[_operator_pb2.BlockReport, _Mapping]]] = ..., summary: _Optional[_Union[_operator_pb2.BlockSummary, _Mapping]] = ..., trusted_horizon_steps: _Optional[float] = ..., history: _Optional[_Iterable[_Union[HistoryPoint, _Mapping]]] = ..., predictability: _Optional[float] = ...) -> None: ...

class HistoryPoint(_message.Message):
    __slots__ = ("step", "spectral_radius", "backtest_error", "backtest_error_linear", "horizon_steps", "predicted_error", "moved")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SPECTRAL_RADIUS_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_LINEAR_FIELD_NUMBER: _ClassVar[int]
    HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_ERROR_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    step: int
    spectral_radius: float
    backtest_error: float
    backtest_error_linear: float
    horizon_steps: float
    predicted_error: float
    moved: bool
    def __init__(self, step: _Optional[int] = ..., spectral_radius: _Optional[float] = ..., backtest_error: _Optional[float] = ..., backtest_error_linear: _Optional[float] = ..., horizon_steps: _Optional[float] = ..., predicted_error: _Optional[float] = ..., moved: bool = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("name", "first_block", "max_blocks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    first_block: int
    max_blocks: int
    def __init__(self, name: _Optional[str] = ..., first_block: _Optional[int] = ..., max_blocks: _Optional[int] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobStatus
    def __init__(self, job: _Optional[_Union[JobStatus, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("name", "lease_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    lease_id: str
    def __init__(self, name: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("lease_seconds",)
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: float
    def __init__(self, lease_seconds: _Optional[float] = ...) -> None: ...

class CloseJobRequest(_message.Message):
    __slots__ = ("name", "lease_id", "keep")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    lease_id: str
    keep: bool
    def __init__(self, name: _Optional[str] = ..., lease_id: _Optional[str] = ..., keep: bool = ...) -> None: ...

class CloseJobResponse(_message.Message):
    __slots__ = ("freed_bytes",)
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...
