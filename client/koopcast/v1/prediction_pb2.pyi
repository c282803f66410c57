from koopcast.v1 import operator_pb2 as _operator_pb2
from koopcast.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictAheadRequest(_message.Message):
    __slots__ = ("job", "lease_id", "horizons", "from_step", "operators", "wire_dtype", "include_base", "clock_intervals", "coefficients_only", "shard_index", "modes", "from_clock", "max_blocks", "reports_only", "prediction_id")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    HORIZONS_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_BASE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_INTERVALS_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_ONLY_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    FROM_CLOCK_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_ONLY_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    job: str
    lease_id: str
    horizons: _containers.RepeatedScalarFieldContainer[float]
    from_step: int
    operators: _containers.RepeatedCompositeFieldContainer[_operator_pb2.OperatorOverride]
    wire_dtype: _tensor_pb2.ElementType
    include_base: bool
    clock_intervals: _containers.RepeatedScalarFieldContainer[float]
    coefficients_only: bool
    shard_index: int
    modes: int
    from_clock: float
    max_blocks: int
    reports_only: bool
    prediction_id: str
    def __init__(self, job: _Optional[str] = ..., lease_id: _Optional[str] = ..., horizons: _Optional[_Iterable[float]] = ..., from_step: _Optional[int] = ..., operators: _Optional[_Iterable[_Union[_operator_pb2.OperatorOverride, _Mapping]]] = ..., wire_dtype: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., include_base: bool = ..., clock_intervals: _Optional[_Iterable[float]] = ..., coefficients_only: bool = ..., shard_index: _Optional[int] = ..., modes: _Optional[int] = ..., from_clock: _Optional[float] = ..., max_blocks: _Optional[int] = ..., reports_only: bool = ..., prediction_id: _Optional[str] = ...) -> None: ...

class Coefficients(_message.Message):
    __slots__ = ("velocity", "last", "strides")
    VELOCITY_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    velocity: _containers.RepeatedScalarFieldContainer[float]
    last: _containers.RepeatedScalarFieldContainer[float]
    strides: float
    def __init__(self, velocity: _Optional[_Iterable[float]] = ..., last: _Optional[_Iterable[float]] = ..., strides: _Optional[float] = ...) -> None: ...

class PredictionReport(_message.Message):
    __slots__ = ("prediction_id", "base_step", "from_step", "steps", "segment", "operator_index", "moved", "blocks", "total_bytes", "dtype", "summary", "coefficients")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_STEP_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_INDEX_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    base_step: int
    from_step: int
    steps: float
    segment: int
    operator_index: int
    moved: bool
    blocks: _containers.RepeatedCompositeFieldContainer[_operator_pb2.BlockReport]
    total_bytes: int
    dtype: _tensor_pb2.ElementType
    summary: _operator_pb2.BlockSummary
    coefficients: Coefficients
    def __init__(self, prediction_id: _Optional[str] = ..., base_step: _Optional[int] = ..., from_step: _Optional[int] = ..., steps: _Optional[float] = ..., segment: _Optional[int] = ..., operator_index: _Optional[int] = ..., moved: bool = ..., blocks: _Optional[_Iterable[_Union[_operator_pb2.BlockReport, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., summary: _Optional[_Union[_operator_pb2.BlockSummary, _Mapping]] = ..., coefficients: _Optional[_Union[Coefficients, _Mapping]] = ...) -> None: ...

class BaseSnapshot(_message.Message):
    __slots__ = ("step", "total_bytes", "dtype")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_bytes: int
    dtype: _tensor_pb2.ElementType
    def __init__(self, step: _Optional[int] = ..., total_bytes: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.ElementType, str]] = ...) -> None: ...

class DisplacementChunk(_message.Message):
    __slots__ = ("offset", "data", "crc32c")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class PredictAheadResponse(_message.Message):
    __slots__ = ("report", "chunk", "base")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    report: PredictionReport
    chunk: DisplacementChunk
    base: BaseSnapshot
    def __init__(self, report: _Optional[_Union[PredictionReport, _Mapping]] = ..., chunk: _Optional[_Union[DisplacementChunk, _Mapping]] = ..., base: _Optional[_Union[BaseSnapshot, _Mapping]] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("job", "lease_id", "prediction_id", "accepted", "loss_before", "loss_after")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    job: str
    lease_id: str
    prediction_id: str
    accepted: bool
    loss_before: float
    loss_after: float
    def __init__(self, job: _Optional[str] = ..., lease_id: _Optional[str] = ..., prediction_id: _Optional[str] = ..., accepted: bool = ..., loss_before: _Optional[float] = ..., loss_after: _Optional[float] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ("jumps_accepted", "jumps_rejected", "trusted_horizon_steps")
    JUMPS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    JUMPS_REJECTED_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    jumps_accepted: int
    jumps_rejected: int
    trusted_horizon_steps: float
    def __init__(self, jumps_accepted: _Optional[int] = ..., jumps_rejected: _Optional[int] = ..., trusted_horizon_steps: _Optional[float] = ...) -> None: ...
