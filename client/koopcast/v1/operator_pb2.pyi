from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Observable(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBSERVABLE_UNSPECIFIED: _ClassVar[Observable]
    OBSERVABLE_STATE: _ClassVar[Observable]
    OBSERVABLE_VELOCITY: _ClassVar[Observable]

class Partition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARTITION_UNSPECIFIED: _ClassVar[Partition]
    PARTITION_NETWORK: _ClassVar[Partition]
    PARTITION_TENSOR: _ClassVar[Partition]
    PARTITION_NODE: _ClassVar[Partition]
    PARTITION_QUASI_NODE: _ClassVar[Partition]
    PARTITION_WEIGHT: _ClassVar[Partition]

class RankRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RANK_RULE_UNSPECIFIED: _ClassVar[RankRule]
    RANK_RULE_AUTO: _ClassVar[RankRule]
    RANK_RULE_FIXED: _ClassVar[RankRule]
    RANK_RULE_ENERGY: _ClassVar[RankRule]
    RANK_RULE_GAVISH_DONOHO: _ClassVar[RankRule]
    RANK_RULE_BACKTESTED: _ClassVar[RankRule]

class Debias(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEBIAS_UNSPECIFIED: _ClassVar[Debias]
    DEBIAS_NONE: _ClassVar[Debias]
    DEBIAS_TOTAL_LEAST_SQUARES: _ClassVar[Debias]
    DEBIAS_FORWARD_BACKWARD: _ClassVar[Debias]
    DEBIAS_BACKTESTED: _ClassVar[Debias]
OBSERVABLE_UNSPECIFIED: Observable
OBSERVABLE_STATE: Observable
OBSERVABLE_VELOCITY: Observable
PARTITION_UNSPECIFIED: Partition
PARTITION_NETWORK: Partition
PARTITION_TENSOR: Partition
PARTITION_NODE: Partition
PARTITION_QUASI_NODE: Partition
PARTITION_WEIGHT: Partition
RANK_RULE_UNSPECIFIED: RankRule
RANK_RULE_AUTO: RankRule
RANK_RULE_FIXED: RankRule
RANK_RULE_ENERGY: RankRule
RANK_RULE_GAVISH_DONOHO: RankRule
RANK_RULE_BACKTESTED: RankRule
DEBIAS_UNSPECIFIED: Debias
DEBIAS_NONE: Debias
DEBIAS_TOTAL_LEAST_SQUARES: Debias
DEBIAS_FORWARD_BACKWARD: Debias
DEBIAS_BACKTESTED: Debias

class OperatorSpec(_message.Message):
    __slots__ = ("observable", "partition", "quasi_node_inputs", "window", "rank_rule", "rank", "energy", "ridge", "stabilize", "forgetting", "delays", "debias", "whole_segment", "ridge_backtested", "max_jump", "mask_tolerance", "always_move")
    OBSERVABLE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    QUASI_NODE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RANK_RULE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    RIDGE_FIELD_NUMBER: _ClassVar[int]
    STABILIZE_FIELD_NUMBER: _ClassVar[int]
    FORGETTING_FIELD_NUMBER: _ClassVar[int]
    DELAYS_FIELD_NUMBER: _ClassVar[int]
    DEBIAS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    RIDGE_BACKTESTED_FIELD_NUMBER: _ClassVar[int]
    MAX_JUMP_FIELD_NUMBER: _ClassVar[int]
    MASK_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    ALWAYS_MOVE_FIELD_NUMBER: _ClassVar[int]
    observable: Observable
    partition: Partition
    quasi_node_inputs: int
    window: int
    rank_rule: RankRule
    rank: int
    energy: float
    ridge: float
    stabilize: bool
    forgetting: float
    delays: int
    debias: Debias
    whole_segment: bool
    ridge_backtested: bool
    max_jump: float
    mask_tolerance: float
    always_move: bool
    def __init__(self, observable: _Optional[_Union[Observable, str]] = ..., partition: _Optional[_Union[Partition, str]] = ..., quasi_node_inputs: _Optional[int] = ..., window: _Optional[int] = ..., rank_rule: _Optional[_Union[RankRule, str]] = ..., rank: _Optional[int] = ..., energy: _Optional[float] = ..., ridge: _Optional[float] = ..., stabilize: bool = ..., forgetting: _Optional[float] = ..., delays: _Optional[int] = ..., debias: _Optional[_Union[Debias, str]] = ..., whole_segment: bool = ..., ridge_backtested: bool = ..., max_jump: _Optional[float] = ..., mask_tolerance: _Optional[float] = ..., always_move: bool = ...) -> None: ...

class OperatorOverride(_message.Message):
    __slots__ = ("rank_rule", "rank", "energy", "ridge", "stabilize", "debias", "ridge_backtested")
    RANK_RULE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    RIDGE_FIELD_NUMBER: _ClassVar[int]
    STABILIZE_FIELD_NUMBER: _ClassVar[int]
    DEBIAS_FIELD_NUMBER: _ClassVar[int]
    RIDGE_BACKTESTED_FIELD_NUMBER: _ClassVar[int]
    rank_rule: RankRule
    rank: int
    energy: float
    ridge: float
    stabilize: bool
    debias: Debias
    ridge_backtested: bool
    def __init__(self, rank_rule: _Optional[_Union[RankRule, str]] = ..., rank: _Optional[int] = ..., energy: _Optional[float] = ..., ridge: _Optional[float] = ..., stabilize: bool = ..., debias: _Optional[_Union[Debias, str]] = ..., ridge_backtested: bool = ...) -> None: ...

class Eigenvalue(_message.Message):
    __slots__ = ("real", "imaginary")
    REAL_FIELD_NUMBER: _ClassVar[int]
    IMAGINARY_FIELD_NUMBER: _ClassVar[int]
    real: float
    imaginary: float
    def __init__(self, real: _Optional[float] = ..., imaginary: _Optional[float] = ...) -> None: ...

class Mode(_message.Message):
    __slots__ = ("eigenvalue", "energy", "time_constant_steps", "residual")
    EIGENVALUE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    TIME_CONSTANT_STEPS_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    eigenvalue: Eigenvalue
    energy: float
    time_constant_steps: float
    residual: float
    def __init__(self, eigenvalue: _Optional[_Union[Eigenvalue, _Mapping]] = ..., energy: _Optional[float] = ..., time_constant_steps: _Optional[float] = ..., residual: _Optional[float] = ...) -> None: ...

class BlockSummary(_message.Message):
    __slots__ = ("blocks", "moved", "untrusted", "spectral_radius", "backtest_error", "backtest_error_linear", "predicted_error", "predictability")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_FIELD_NUMBER: _ClassVar[int]
    SPECTRAL_RADIUS_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_LINEAR_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_ERROR_FIELD_NUMBER: _ClassVar[int]
    PREDICTABILITY_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    moved: int
    untrusted: int
    spectral_radius: float
    backtest_error: float
    backtest_error_linear: float
    predicted_error: float
    predictability: float
    def __init__(self, blocks: _Optional[int] = ..., moved: _Optional[int] = ..., untrusted: _Optional[int] = ..., spectral_radius: _Optional[float] = ..., backtest_error: _Optional[float] = ..., backtest_error_linear: _Optional[float] = ..., predicted_error: _Optional[float] = ..., predictability: _Optional[float] = ...) -> None: ...

class BlockReport(_message.Message):
    __slots__ = ("name", "parameters", "rank", "spectral_radius", "residual", "backtest_error", "backtest_error_linear", "backtest_steps", "moved", "extrapolated", "eigenvalues", "predicted_error", "ridge", "debias", "jump_scale", "modes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SPECTRAL_RADIUS_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_ERROR_LINEAR_FIELD_NUMBER: _ClassVar[int]
    BACKTEST_STEPS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    EXTRAPOLATED_FIELD_NUMBER: _ClassVar[int]
    EIGENVALUES_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_ERROR_FIELD_NUMBER: _ClassVar[int]
    RIDGE_FIELD_NUMBER: _ClassVar[int]
    DEBIAS_FIELD_NUMBER: _ClassVar[int]
    JUMP_SCALE_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: int
    rank: int
    spectral_radius: float
    residual: float
    backtest_error: float
    backtest_error_linear: float
    backtest_steps: int
    moved: bool
    extrapolated: bool
    eigenvalues: _containers.RepeatedCompositeFieldContainer[Eigenvalue]
    predicted_error: float
    ridge: float
    debias: Debias
    jump_scale: float
    modes: _containers.RepeatedCompositeFieldContainer[Mode]
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[int] = ..., rank: _Optional[int] = ..., spectral_radius: _Optional[float] = ..., residual: _Optional[float] = ..., backtest_error: _Optional[float] = ..., backtest_error_linear: _Optional[float] = ..., backtest_steps: _Optional[int] = ..., moved: bool = ..., extrapolated: bool = ..., eigenvalues: _Optional[_Iterable[_Union[Eigenvalue, _Mapping]]] = ..., predicted_error: _Optional[float] = ..., ridge: _Optional[float] = ..., debias: _Optional[_Union[Debias, str]] = ..., jump_scale: _Optional[float] = ..., modes: _Optional[_Iterable[_Union[Mode, _Mapping]]] = ...) -> None: ...
