"""Windows that the trainer holds, through a real service: Gram rows up, coefficients down, the same jumps."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import torch

import koopcast
from held import PATH, SNAPSHOTS, SPECS, STRIDE, WINDOW, Trainer, assert_same, flat, tensors, weights
from koopcast.channel import error_from_call
from koopcast.gram import GramRow
from koopcast.v1 import snapshot_pb2
from koopcast.window.held import TrainerWindow
from raw import stubs
from services import RunningService


@pytest.mark.parametrize("partition", ["network", "tensor", "node", "quasi_node", "weight"])
@pytest.mark.parametrize(
    "settings",
    [
        {"forgetting": 0.9, "max_jump": 0.5, "mask_tolerance": 3.0},
        {"rank": "gavish-donoho", "delays": 1},
        {"observable": "state", "rank": "backtest", "ridge": "backtest"},
    ],
    ids=str,
)
def test_the_answers_are_those_of_a_window_at_the_service(
    client: koopcast.Client, job_name: str, partition: Any, settings: dict[str, Any]
) -> None:
    inputs = 6 if partition == "quasi_node" else None
    operator = koopcast.Operator(partition=partition, window=WINDOW, quasi_node_inputs=inputs, **settings)
    trainer = Trainer(client, job_name, operator)
    served = client.open_job(f"{job_name}-served", SPECS, stride=STRIDE, operator=operator)
    for index, snapshot in enumerate(PATH):
        result = trainer.push(STRIDE * index, tensors(snapshot))
        assert result == served.push(STRIDE * index, snapshot)
    last = STRIDE * (SNAPSHOTS - 1)
    for options in (
        {},
        {"from_step": last + 2},
        {"operators": [operator, koopcast.Operator(rank=2, ridge=1e-3)]},
    ):
        expected = served.predict_ahead([STRIDE, 8.0 * STRIDE], **options)
        assert_same(trainer.predict([STRIDE, 8.0 * STRIDE], **options), expected)
    assert trainer.job.status().blocks[0].name == served.status().blocks[0].name
    trainer.job.close()
    served.close()


def test_on_the_clock(client: koopcast.Client, job_name: str) -> None:
    operator = koopcast.Operator(window=WINDOW)
    trainer = Trainer(client, job_name, operator)
    served = client.open_job(f"{job_name}-served", SPECS, stride=STRIDE, operator=operator)
    clock = 0.0
    for index, snapshot in enumerate(PATH):
        clock += 1.0 / (1.0 + 0.05 * index)
        trainer.push(STRIDE * index, tensors(snapshot), averaging=3, clock=clock)
        served.push(STRIDE * index, snapshot, averaging=3, clock=clock)
    asked: dict[str, Any] = {"clock_intervals": [0.5, 3.0], "from_clock": clock + 0.1}
    expected = served.predict_ahead([STRIDE, 8.0 * STRIDE], **asked)
    assert_same(trainer.predict([STRIDE, 8.0 * STRIDE], **asked), expected)


# ------------------------------------------------------------------------------------- segments, and what is refused


def test_a_writer_that_resumes_begins_a_segment(client: koopcast.Client, job_name: str) -> None:
    operator = koopcast.Operator(window=4)
    before = Trainer(client, job_name, operator)
    for index in range(5):
        before.push(STRIDE * index, tensors(PATH[index]))
    before.job.close(keep=True)
    after = Trainer(client, job_name, operator)
    assert (after.job.resumed, after.job.segment, after.job.snapshots_held) == (True, 2, 4)
    assert after.push(1000, tensors(PATH[5])).snapshots_held == 1
    after.window.clear()
    after.job.start_segment()
    assert after.push(3, tensors(PATH[6])).snapshots_held == 1
    assert after.job.status().segment == 3


def test_the_same_row_again_is_a_duplicate(client: koopcast.Client, job_name: str) -> None:
    trainer = Trainer(client, job_name, koopcast.Operator(window=4))
    trainer.push(0, tensors(PATH[0]))
    row = trainer.row(STRIDE, tensors(PATH[1]))
    assert trainer.job.push_gram_row(STRIDE, row).outcome == "accepted"
    assert trainer.job.push_gram_row(STRIDE, row).outcome == "duplicate"
    with pytest.raises(koopcast.AlreadyExists, match="other products"):
        trainer.job.push_gram_row(STRIDE, GramRow(2 * row.velocity, row.weight, row.squared))
    assert trainer.job.status().snapshots_accepted == 2


def test_each_kind_of_job_refuses_the_other_kinds_calls(client: koopcast.Client, job_name: str) -> None:
    operator = koopcast.Operator(window=4)
    trainer = Trainer(client, job_name, operator)
    served = client.open_job(f"{job_name}-served", SPECS, stride=STRIDE, operator=operator)
    for index in range(4):
        trainer.push(STRIDE * index, tensors(PATH[index]))
        served.push(STRIDE * index, PATH[index])
    row = GramRow(np.zeros((1, 0)), np.zeros((1, 0)), np.zeros(1))
    for call, reason in (
        (lambda: trainer.job.push(20, PATH[4]), "WINDOW_AT_TRAINER"),
        (lambda: trainer.job.predict_ahead(10), "WINDOW_AT_TRAINER"),
        (lambda: served.push_gram_row(20, row), "WINDOW_AT_SERVICE"),
        (lambda: served.predict_coefficients(10), "WINDOW_AT_SERVICE"),
    ):
        with pytest.raises(koopcast.FailedPrecondition) as refused:
            call()
        assert refused.value.reason == reason
    (unbound,) = trainer.job.predict_coefficients(10)
    with pytest.raises(koopcast.FailedPrecondition, match="bind"):
        unbound.displacement  # noqa: B018
    (own,) = served.predict_ahead([10.0])
    with pytest.raises(koopcast.FailedPrecondition, match="its own displacement"):
        trainer.window.bind(own)
    with pytest.raises(koopcast.AlreadyExists, match="trainer_held"):
        client.open_job(job_name, SPECS, stride=STRIDE, operator=operator, take_over=True)


def test_too_few_snapshots_and_no_motion(client: koopcast.Client, job_name: str) -> None:
    trainer = Trainer(client, job_name, koopcast.Operator(window=4))
    trainer.push(0, tensors(PATH[0]))
    with pytest.raises(koopcast.FailedPrecondition, match="holds 1 snapshots"):
        trainer.predict([10])
    for index in range(1, 4):
        trainer.push(STRIDE * index, tensors(PATH[0]))
    (still,) = trainer.predict([10])
    assert (still.moved, still.coefficients) == (False, None)
    assert not flat(still).any()
    trainer.job.report(still, accepted=False)


@pytest.mark.parametrize(
    ("operator", "options", "field"),
    [
        (koopcast.Operator(partition="node"), {"shard_count": 2}, "partition"),
        (koopcast.Operator(partition="node", window="segment"), {}, "window"),
        (koopcast.Operator(), {"shard_count": 0}, "shard_count"),
        (koopcast.Operator(), {"shard_count": 2, "shard_index": 2}, "shard_index"),
        (koopcast.Operator(), {"shard_count": 2, "window_holder": "server"}, "shard_count"),
        (koopcast.Operator(), {"window_holder": "nobody"}, "window_holder"),
    ],
    ids=[
        "node in shards",
        "segment",
        "no shards",
        "no such shard",
        "shards at the service",
        "nobody",
    ],
)
def test_jobs_that_cannot_be(
    client: koopcast.Client, job_name: str, operator: koopcast.Operator, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(koopcast.InvalidArgument) as refused:
        client.open_job(
            job_name, SPECS, stride=STRIDE, operator=operator, **{"window_holder": "trainer", **options}
        )
    assert refused.value.details["field"] == field
    assert not [job for job in client.jobs() if job.name == job_name]


def test_rows_too_long_for_a_message_are_refused_when_the_job_opens(
    client: koopcast.Client, job_name: str
) -> None:
    many = {"w": koopcast.TensorSpec("float32", (1_000_000,))}
    with pytest.raises(koopcast.InvalidArgument, match="Gram rows of 9"):
        client.open_job(
            job_name, many, stride=1, operator=koopcast.Operator(partition="weight"), window_holder="trainer"
        )


# ------------------------------------------------------------------------------------- messages of other clients


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"velocity_products": [1.0, 2.0]}, "velocity_products"),
        ({"velocity_products": []}, "velocity_products"),
        ({"velocity_products": [float("nan")]}, "velocity_products"),
        ({"weight_products": [1.0]}, "weight_products"),
        ({"weights_squared": [float("inf")]}, "weights_squared"),
        ({"weights_squared": [1.0, 1.0]}, "weights_squared"),
        ({"shard_index": 1}, "shard_index"),
        ({"clock": float("nan")}, "clock"),
        ({"clock": -1.0}, "clock"),
        ({"averaging": 7}, "averaging"),
        ({"step": 6}, "step"),
        ({"step": 2**63}, "step"),
        ({"segment": 0}, "segment"),
    ],
    ids=str,
)
def test_rows_that_are_none_change_nothing(
    service: RunningService, client: koopcast.Client, job_name: str, change: dict[str, Any], field: str
) -> None:
    trainer = Trainer(client, job_name, koopcast.Operator(window=4))
    trainer.push(0, tensors(PATH[0]))
    good: dict[str, Any] = {
        "job": job_name,
        "lease_id": trainer.job.lease_id,
        "segment": 1,
        "step": STRIDE,
        "velocity_products": [1.0],
        "weights_squared": [2.0],
    }
    with stubs(service.target) as raw:
        with pytest.raises(grpc.RpcError) as refused:
            raw.snapshots.PushGramRow(snapshot_pb2.PushGramRowRequest(**{**good, **change}), timeout=20)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error_from_call(refused.value, "").details["field"] == field
        assert trainer.job.status().snapshots_held == 1
        raw.snapshots.PushGramRow(snapshot_pb2.PushGramRowRequest(**good), timeout=20)
    assert trainer.job.status().snapshots_held == 2


# ------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize(("blocks", "window"), [(1, 3), (1, 12), (40, 3), (40, 12), (300, 12), (40, 64)])
def test_messages_are_as_short_as_was_promised(
    client: koopcast.Client, job_name: str, blocks: int, window: int, observable: Any
) -> None:
    """At most 1.5 times 8 B m^2 bytes and 4 KB each way, a message; the longest rows are those of a full window."""
    specs = {f"layers.{index}.weight": koopcast.TensorSpec("float32", (70,)) for index in range(blocks)}
    operator = koopcast.Operator(partition="tensor", window=window, observable=observable)
    held = TrainerWindow(specs, operator)
    job = client.open_job(job_name, specs, stride=1, operator=operator, window_holder="trainer")
    generator, limit = torch.Generator().manual_seed(0), 1.5 * 8 * blocks * window**2 + 4096
    weights = torch.randn(held.size, generator=generator)
    for step in range(window + 1):
        held.spare.copy_(weights.add_(torch.randn(held.size, generator=generator), alpha=0.9**step))
        before = job.bytes_sent
        job.push_gram_row(step, held.publish(step))
        assert job.bytes_sent - before <= limit
    before = job.bytes_received
    job.predict_coefficients(5.0, operators=[koopcast.Operator(always_move=True)])
    assert 0 < job.bytes_received - before <= limit
    job.close()


def test_a_jump_of_a_network_costs_less_than_100_kb(client: koopcast.Client, job_name: str) -> None:
    trainer = Trainer(client, job_name, koopcast.Operator())
    for index in range(12):
        trainer.push(STRIDE * index, tensors(weights(index)))
    operators = [
        koopcast.Operator(rank=rank, ridge=ridge) for rank, ridge in ((4, 1e-4), (8, 1e-6), (2, 1e-3))
    ]
    trainer.predict([20.0, 80.0, 320.0, 1280.0], operators=operators)
    assert trainer.job.bytes_sent + trainer.job.bytes_received < 100_000
