"""Messages keep what they are made from; the light client's error types read what google.rpc's write."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import koopcast
from koopcast.messages import tensors_from_messages, tensors_to_messages
from koopcast.operator_messages import (
    operator_from_message,
    operator_to_message,
    override_from_message,
    override_to_message,
)
from koopcast.prediction import (
    Block,
    Mode,
    Summary,
    block_from_message,
    block_to_message,
    summary_from_message,
    summary_to_message,
)
from koopcast.status import HistoryPoint, JobStatus, Lease, status_from_message, status_to_message
from koopcast.v1 import error_pb2, operator_pb2
from koopcast_server.interceptor import status_of

OPERATORS = [
    koopcast.Operator(),
    koopcast.Operator(observable="state", partition="tensor", window=2, rank=1, ridge=0.0, stabilize=False),
    koopcast.Operator(rank="energy", energy=0.5, window=64),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_an_operator_survives_its_message(operator: koopcast.Operator) -> None:
    assert operator_from_message(operator_to_message(operator)) == operator


def test_an_empty_operator_message_is_the_default() -> None:
    assert operator_from_message(operator_pb2.OperatorSpec()) == koopcast.Operator()


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_an_override_changes_rank_ridge_and_stabilisation_only(operator: koopcast.Operator) -> None:
    base = koopcast.Operator(window=7, ridge=0.25)
    changed = override_from_message(override_to_message(operator), base)
    assert (changed.rank, changed.ridge, changed.stabilize) == (
        operator.rank,
        operator.ridge,
        operator.stabilize,
    )
    assert (changed.window, changed.observable, changed.partition) == (7, "velocity", "network")
    assert override_from_message(operator_pb2.OperatorOverride(), base) == base


def test_tensor_specs_survive_their_messages_in_order() -> None:
    specs = {"b": koopcast.TensorSpec("bfloat16", (2, 3)), "a": koopcast.TensorSpec("float64", ())}
    assert list(tensors_from_messages(tensors_to_messages(specs)).items()) == list(specs.items())


MODES = (Mode(1 + 0.5j, 0.75, -89.6, 0.01), Mode(-1 + 0j, 0.25, math.inf, 0.5))
BLOCK = Block(
    name="fc1[17]",
    parameters=6,
    rank=2,
    spectral_radius=1.01,
    residual=0.1,
    backtest_error=0.2,
    backtest_error_linear=math.inf,
    backtest_steps=30,
    moved=True,
    extrapolated=False,
    eigenvalues=(1 + 0.5j, 1 - 0.5j),
    predicted_error=0.3,
    ridge=1e-3,
    debias="forward-backward",
    jump_scale=0.5,
    modes=MODES,
)
SUMMARY = Summary(
    blocks=100_000,
    moved=7,
    untrusted=2,
    spectral_radius=1.01,
    backtest_error=0.2,
    backtest_error_linear=0.9,
    predicted_error=0.3,
    predictability=0.75,
)
STATUS = JobStatus(
    name="x",
    owner="alice",
    tensors={"w": koopcast.TensorSpec("float32", (6,))},
    stride=10,
    operator=OPERATORS[2],
    window_dtype="bfloat16",
    wire_dtype="float32",
    segment=3,
    step=40,
    snapshots_held=5,
    snapshots_accepted=9,
    parameters=6,
    memory_bytes=1000,
    bytes_received=216,
    bytes_sent=24,
    predictions=1,
    jumps_accepted=1,
    jumps_rejected=2,
    last_prediction_seconds=0.5,
    created=datetime(2026, 1, 2, tzinfo=UTC),
    pushed=datetime(2026, 1, 3, tzinfo=UTC),
    lease=Lease(True, 30.0, "koopcast/0.1.0"),
    blocks=(BLOCK,),
    summary=SUMMARY,
    trusted_horizon_steps=120.5,
    history=(
        HistoryPoint(30, 1.25, 0.5, 0.75, 100.0, 0.625, True),
        HistoryPoint(40, 1.5, 0.25, 0.375, 50.0, 0.125, False),
    ),
    predictability=0.5,
)


def test_a_status_survives_its_message() -> None:
    assert status_from_message(status_to_message(STATUS)) == STATUS


def test_a_status_without_operator_survives_its_message() -> None:
    status = replace(STATUS, blocks=(), summary=None, history=(), step=None, snapshots_held=0, pushed=None)
    assert status_from_message(status_to_message(status)) == status


@pytest.mark.parametrize("debias", ["none", "total-least-squares", "forward-backward", "backtest"])
def test_a_block_survives_its_message_with_its_modes(debias: str) -> None:
    block = replace(BLOCK, debias=debias)
    assert block_from_message(block_to_message(block)) == block


def test_what_a_block_does_not_know_stays_unknown() -> None:
    block = Block("network", 6, 0, 0.0, math.nan, math.nan, math.nan, 0, False, True, ())
    read = block_from_message(block_to_message(block))
    assert (read.debias, read.jump_scale, read.ridge, read.modes) == ("none", 1.0, 0.0, ())
    undefined = (read.residual, read.backtest_error, read.backtest_error_linear, read.predicted_error)
    assert all(math.isnan(value) for value in undefined)


def test_a_summary_survives_its_message() -> None:
    assert summary_from_message(summary_to_message(SUMMARY)) == SUMMARY


@pytest.mark.parametrize("known", [None, 0.0, 1.0])
def test_a_predictability_of_nothing_is_not_one_that_is_unknown(known: float | None) -> None:
    status = replace(STATUS, summary=replace(SUMMARY, predictability=known), predictability=known)
    assert status_from_message(status_to_message(status)) == status
    assert (
        operator_pb2.BlockSummary(blocks=1).HasField("predictability") is False
    )  # as older services send it


def test_the_clients_error_types_have_the_wire_format_of_google_rpc() -> None:
    error = koopcast.InvalidArgument("no", reason="WRONG", field="step", held=2)
    sent = status_of(error)
    read = error_pb2.ErrorStatus.FromString(sent.SerializeToString())
    assert (read.code, read.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "no")
    assert [detail.type_url.rpartition("/")[2] for detail in read.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
    ]
    info = error_pb2.ErrorInfo.FromString(read.details[0].value)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "WRONG",
        "koopcast",
        {"field": "step", "held": "2"},
    )
    assert status_pb2.Status.FromString(read.SerializeToString()) == sent
    assert error_details_pb2.ErrorInfo.FromString(info.SerializeToString()).reason == "WRONG"


def test_every_status_code_has_an_exception_with_that_code_or_is_internal() -> None:
    for code in grpc.StatusCode:
        raised = koopcast.errors.error_class(code)
        assert raised.code is code or raised is koopcast.InternalError


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    drawn = koopcast.errors.__doc__ or ""
    for name in koopcast.errors.__all__:
        value = getattr(koopcast.errors, name)
        if isinstance(value, type):
            assert f" {name} " in drawn or drawn.find(f"    {name} ") >= 0, name
            assert issubclass(value, koopcast.KoopcastError)
