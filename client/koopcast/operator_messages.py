"""Operator settings to protobuf messages and back. Used by the client and by the service, so that both read alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from koopcast.errors import InvalidArgument
from koopcast.operator import Operator
from koopcast.v1 import operator_pb2

__all__ = [
    "debias_name",
    "debias_number",
    "operator_from_message",
    "operator_to_message",
    "override_from_message",
    "override_to_message",
]

_OBSERVABLES: Final[Mapping[str, operator_pb2.Observable]] = {
    "velocity": operator_pb2.OBSERVABLE_VELOCITY,
    "state": operator_pb2.OBSERVABLE_STATE,
}
_PARTITIONS: Final[Mapping[str, operator_pb2.Partition]] = {
    "network": operator_pb2.PARTITION_NETWORK,
    "tensor": operator_pb2.PARTITION_TENSOR,
    "node": operator_pb2.PARTITION_NODE,
    "quasi_node": operator_pb2.PARTITION_QUASI_NODE,
    "weight": operator_pb2.PARTITION_WEIGHT,
}
_RANK_RULES: Final[Mapping[str, operator_pb2.RankRule]] = {
    "auto": operator_pb2.RANK_RULE_AUTO,
    "energy": operator_pb2.RANK_RULE_ENERGY,
    "gavish-donoho": operator_pb2.RANK_RULE_GAVISH_DONOHO,
    "backtest": operator_pb2.RANK_RULE_BACKTESTED,
}
_DEBIASES: Final[Mapping[str, operator_pb2.Debias]] = {
    "none": operator_pb2.DEBIAS_NONE,
    "total-least-squares": operator_pb2.DEBIAS_TOTAL_LEAST_SQUARES,
    "forward-backward": operator_pb2.DEBIAS_FORWARD_BACKWARD,
    "backtest": operator_pb2.DEBIAS_BACKTESTED,
}


def operator_to_message(operator: Operator) -> operator_pb2.OperatorSpec:
    """All settings, none left to a default."""
    segment = operator.window == "segment"
    return operator_pb2.OperatorSpec(
        observable=_OBSERVABLES[operator.observable],
        partition=_PARTITIONS[operator.partition],
        quasi_node_inputs=operator.quasi_node_inputs or 0,
        window=0 if operator.window == "segment" else operator.window,
        whole_segment=segment,
        forgetting=operator.forgetting,
        delays=operator.delays,
        debias=_DEBIASES[operator.debias],
        max_jump=operator.max_jump or 0.0,
        mask_tolerance=operator.mask_tolerance,
        always_move=operator.always_move,
        stabilize=operator.stabilize,
        **_rank_to_message(operator),
        **_ridge_to_message(operator),
    )


def operator_from_message(message: operator_pb2.OperatorSpec) -> Operator:
    """The settings of a message; what is unspecified gets its default.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
    default = Operator()
    if message.whole_segment and message.window:
        raise InvalidArgument("window and whole_segment exclude each other", field="window")
    return Operator(
        **_known("observable", message.observable, _OBSERVABLES),
        **_known("partition", message.partition, _PARTITIONS),
        **_known("debias", message.debias, _DEBIASES),
        **_rank_from_message(message),
        **_ridge_from_message(message),
        window="segment" if message.whole_segment else message.window or default.window,
        stabilize=message.stabilize if message.HasField("stabilize") else default.stabilize,
        quasi_node_inputs=message.quasi_node_inputs or None,
        forgetting=message.forgetting or default.forgetting,
        delays=message.delays,
        max_jump=message.max_jump or None,
        mask_tolerance=message.mask_tolerance if message.HasField("mask_tolerance") else None,
        always_move=message.always_move,
    )


def override_to_message(operator: Operator) -> operator_pb2.OperatorOverride:
    """Rank, ridge, debiasing and stabilisation of `operator`; the rest is the job's."""
    return operator_pb2.OperatorOverride(
        stabilize=operator.stabilize,
        debias=_DEBIASES[operator.debias],
        **_rank_to_message(operator),
        **_ridge_to_message(operator),
    )


def override_from_message(message: operator_pb2.OperatorOverride, base: Operator) -> Operator:
    """`base` with the fields that the message sets.

    Raises:
        InvalidArgument: a value out of range.
    """
    changes = {
        **_known("debias", message.debias, _DEBIASES),
        **_rank_from_message(message),
        **_ridge_from_message(message),
    }
    if message.HasField("stabilize"):
        changes["stabilize"] = message.stabilize
    return replace(base, **changes)


def debias_number(name: str) -> operator_pb2.Debias:
    """The message's number of a debiasing method."""
    return _DEBIASES[name]


def debias_name(number: int) -> str:
    """The name of a debiasing method; ``"none"`` where it is not known."""
    return next((name for name, known in _DEBIASES.items() if known == number), "none")


def _rank_to_message(operator: Operator) -> dict[str, Any]:
    if isinstance(operator.rank, str):
        energy = operator.energy if operator.rank == "energy" else 0.0
        return {"rank_rule": _RANK_RULES[operator.rank], "energy": energy}
    return {"rank_rule": operator_pb2.RANK_RULE_FIXED, "rank": operator.rank}


def _rank_from_message(message: operator_pb2.OperatorSpec | operator_pb2.OperatorOverride) -> dict[str, Any]:
    if message.rank_rule == operator_pb2.RANK_RULE_FIXED:
        return {"rank": message.rank}
    rule = _known("rank", message.rank_rule, _RANK_RULES)
    if rule.get("rank") == "energy":
        return rule | {"energy": message.energy}
    return rule


def _ridge_to_message(operator: Operator) -> dict[str, Any]:
    return {"ridge_backtested": True} if isinstance(operator.ridge, str) else {"ridge": operator.ridge}


def _ridge_from_message(message: operator_pb2.OperatorSpec | operator_pb2.OperatorOverride) -> dict[str, Any]:
    if message.ridge_backtested:
        return {"ridge": "backtest"}
    return {"ridge": message.ridge} if message.HasField("ridge") else {}


def _known(field: str, number: int, table: Mapping[str, int]) -> dict[str, Any]:
    """The field's value by its number; nothing where the number says: unspecified."""
    if number == 0:
        return {}
    for name, known in table.items():
        if known == number:
            return {field: name}
    raise InvalidArgument(f"this service does not implement {field} number {number}", field=field)
