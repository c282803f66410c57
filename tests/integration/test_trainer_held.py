"""Windows that the trainer holds, through a real service: Gram rows up, coefficients down, the same jumps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch

import koopcast
from koopcast.channel import error_from_call
from koopcast.gram import GramRow
from koopcast.v1 import snapshot_pb2
from koopcast.window.held import Shard, TrainerWindow
from raw import stubs
from services import RunningService

SHAPES: dict[str, tuple[int, ...]] = {
    "fc1.weight": (20, 11),
    "fc1.bias": (20,),
    "fc2.weight": (7, 20),
    "fc2.bias": (7,),
    "scale": (),
}
SPECS = {name: koopcast.TensorSpec("float32", shape) for name, shape in SHAPES.items()}
STRIDE, SNAPSHOTS, WINDOW = 5, 10, 8
"""Biases and some nodes are shorter than the window."""
Weights = dict[str, npt.NDArray[np.float32]]


def weights(index: int) -> Weights:
    """A path with several modes, one of them alternating, and a little noise; float32."""
    random = np.random.default_rng(7)
    rates = np.array([0.99, 0.9, 0.7, -0.4])
    found: Weights = {}
    for name, shape in SHAPES.items():
        fixed, modes = random.standard_normal(shape), random.standard_normal((*shape, len(rates)))
        noise = np.random.default_rng((index, len(found))).standard_normal(shape)
        found[name] = np.asarray(fixed + modes @ rates**index + 1e-3 * noise, np.float32)
    return found


PATH = [weights(index) for index in range(SNAPSHOTS)]


def tensors(snapshot: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in snapshot.items()}


class Trainer:
    """One process of a trainer: its window, and its job at the service."""

    def __init__(
        self,
        client: koopcast.Client,
        name: str,
        operator: koopcast.Operator,
        shard: Shard | None = None,
        **options: Any,
    ) -> None:
        self.window = TrainerWindow(SPECS, operator, shard=shard)
        self.job = client.open_job(
            name, SPECS, stride=STRIDE, operator=operator, window_holder="trainer", **options
        )

    def row(self, step: int, snapshot: dict[str, torch.Tensor]) -> GramRow:
        self.window.write(snapshot)
        return self.window.publish(step)

    def push(self, step: int, snapshot: dict[str, torch.Tensor], **times: Any) -> Any:
        return self.job.push_gram_row(step, self.row(step, snapshot), **times)

    def predict(self, horizons: Sequence[float], **options: Any) -> list[koopcast.Prediction]:
        return [self.window.bind(p) for p in self.job.predict_coefficients(horizons, **options)]


def flat(prediction: koopcast.Prediction) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in prediction.displacement.values()])


def assert_same(found: Sequence[koopcast.Prediction], expected: Sequence[koopcast.Prediction]) -> None:
    """The same blocks move, by the same up to 1e-5 of the displacement's length."""
    assert [(p.steps, p.operator_index, p.base_step) for p in found] == [
        (p.steps, p.operator_index, p.base_step) for p in expected
    ]
    assert any(flat(p).any() for p in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.summary.moved == other.summary.moved
        assert np.linalg.norm(flat(one) - flat(other)) <= 1e-5 * np.linalg.norm(flat(other))


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


# ------------------------------------------------------------------------------------------------------- shards


def parts(count: int) -> list[Shard]:
    """Each tensor's first dimension cut unevenly: the last process has nothing of most of them, and of three nothing."""
    cuts = {2: [0.7], 3: [0.6, 1.0]}[count]
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    for name, shape in SHAPES.items():
        rows = shape[0] if shape else 1
        bounds = [0, *(round(cut * rows) for cut in cuts), rows]
        for shard, start, stop in zip(shards, bounds, bounds[1:], strict=False):
            shard[name] = (stop - start, *shape[1:])
    return list(shards)


def cut(snapshot: Weights, shards: Sequence[Shard]) -> list[dict[str, torch.Tensor]]:
    """Each process's part of a snapshot."""
    found: list[dict[str, torch.Tensor]] = [{} for _ in shards]
    for name, array in tensors(snapshot).items():
        begin = 0
        for local, shard in zip(found, shards, strict=True):
            size = int(np.prod(shard[name]))
            local[name] = array.reshape(-1)[begin : begin + size].reshape(shard[name])
            begin += size
    return found


def opened(
    clients: Sequence[koopcast.Client], name: str, operator: koopcast.Operator, shards: Sequence[Shard]
) -> list[Trainer]:
    first = Trainer(clients[0], name, operator, shards[0], shard_count=len(shards))
    return [
        first,
        *(
            Trainer(
                clients[index],
                name,
                operator,
                shards[index],
                shard_count=len(shards),
                shard_index=index,
                shared_lease_id=first.job.lease_id,
            )
            for index in range(1, len(shards))
        ),
    ]


@pytest.mark.parametrize("observable", ["velocity", "state"])
@pytest.mark.parametrize("partition", ["network", "tensor"])
@pytest.mark.parametrize("count", [2, 3])
def test_shards_answer_like_the_whole(
    client: koopcast.Client, job_name: str, count: int, partition: Any, observable: Any
) -> None:
    operator = koopcast.Operator(partition=partition, observable=observable, window=WINDOW)
    whole, shards = Trainer(client, f"{job_name}-whole", operator), parts(count)
    trainers = opened([client] * count, job_name, operator, shards)
    for index, snapshot in enumerate(PATH):
        whole.push(STRIDE * index, tensors(snapshot))
        held = min(index, WINDOW)
        for number, (trainer, local) in enumerate(zip(trainers, cut(snapshot, shards), strict=True)):
            result = trainer.push(STRIDE * index, local)
            last = number == count - 1
            assert (result.outcome, result.snapshots_held) == (
                "accepted",
                min(index + 1, WINDOW) if last else held,
            )
    expected = whole.predict([STRIDE, 40.0])
    for trainer in trainers:
        answered = trainer.predict([STRIDE, 40.0])
        assert [p.summary.moved for p in answered] == [p.summary.moved for p in expected]
    for position, prediction in enumerate(expected):
        joined: dict[str, list[Any]] = {name: [] for name in SHAPES}
        for trainer in trainers:
            for name, part in trainer.predict([STRIDE, 40.0])[position].displacement.items():
                joined[name].append(np.asarray(part).ravel())
        together = np.concatenate([np.concatenate(joined[name]) for name in SHAPES])
        assert np.linalg.norm(together - flat(prediction)) <= 1e-5 * np.linalg.norm(flat(prediction))


def test_shards_need_not_wait_for_each_other(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    operator, shards = koopcast.Operator(window=WINDOW, partition="tensor"), parts(3)
    whole = Trainer(client, f"{job_name}-whole", operator)
    for index in range(WINDOW):
        whole.push(STRIDE * index, tensors(PATH[index]))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(koopcast.connect(service.target)) for _ in shards]
        trainers = opened(clients, job_name, operator, shards)

        def run(number: int) -> None:
            for index in range(WINDOW):
                trainers[number].push(STRIDE * index, cut(PATH[index], shards)[number])

        with ThreadPoolExecutor(len(shards)) as pool:
            list(pool.map(run, range(len(shards))))
        (expected,), (found,) = whole.job.predict_coefficients(40), trainers[2].job.predict_coefficients(40)
    assert expected.coefficients is not None
    assert found.coefficients is not None
    scale = np.abs(expected.coefficients.velocity).max()
    np.testing.assert_allclose(
        found.coefficients.velocity, expected.coefficients.velocity, rtol=1e-6, atol=1e-6 * scale
    )


def test_shards_share_one_lease_and_begin_alike(client: koopcast.Client, job_name: str) -> None:
    operator, shards = koopcast.Operator(window=4), parts(2)
    with pytest.raises(koopcast.NotFound):
        client.open_job(
            job_name, SPECS, stride=STRIDE, operator=operator, window_holder="trainer", shared_lease_id="none"
        )
    first, second = opened([client, client], job_name, operator, shards)
    assert (first.job.segment, second.job.segment) == (1, 1)
    first.push(0, cut(PATH[0], shards)[0])
    options: dict[str, Any] = {"stride": STRIDE, "operator": operator, "window_holder": "trainer"}
    late = client.open_job(
        job_name, SPECS, **options, shard_count=2, shard_index=1, shared_lease_id=first.job.lease_id
    )
    assert late.segment == 1  # not above a segment that its own trainer has begun
    with pytest.raises(koopcast.AlreadyExists, match="shared_lease_id"):
        client.open_job(job_name, SPECS, **options, shard_count=2, shard_index=1)
    with pytest.raises(koopcast.LeaseLost):
        client.open_job(job_name, SPECS, **options, shard_count=2, shard_index=1, shared_lease_id="wrong")
    with pytest.raises(koopcast.AlreadyExists, match="shard_count"):
        client.open_job(
            job_name, SPECS, **options, shard_count=3, shard_index=2, shared_lease_id=first.job.lease_id
        )
    second.job.close()  # lets go only
    assert first.push(STRIDE, cut(PATH[1], shards)[0]).outcome == "accepted"
    status = first.job.status()
    assert (status.window_holder, status.shard_count, status.snapshots_held) == ("trainer", 2, 0)
    first.job.close()
    with pytest.raises(koopcast.NotFound):
        late.push_gram_row(0, second.row(0, cut(PATH[0], shards)[1]))


def test_a_shard_that_is_gone_keeps_nothing_from_going_on(client: koopcast.Client, job_name: str) -> None:
    operator, shards = koopcast.Operator(window=4), parts(2)
    first, second = opened([client, client], job_name, operator, shards)
    local = [cut(snapshot, shards) for snapshot in PATH]
    for index in range(4):
        for trainer, own in zip((first, second), local[index], strict=True):
            trainer.push(STRIDE * index, own)
    for index in range(4, 8):  # the second one is silent
        assert first.push(STRIDE * index, local[index][0]).outcome == "accepted"
    assert first.job.status().step == 3 * STRIDE
    with pytest.raises(koopcast.FailedPrecondition) as refused:
        first.push(8 * STRIDE, local[8][0])
    assert refused.value.reason == "SHARD_BEHIND"
    for trainer in (first, second):
        trainer.window.clear()
    first.job.start_segment()
    first.push(900, local[8][0])
    assert second.job.push_gram_row(4 * STRIDE, second.row(0, local[4][1])).outcome == "superseded"
    second.job.start_segment()
    second.window.clear()
    assert second.push(900, local[8][1]).snapshots_held == 1


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
