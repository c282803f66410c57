"""Windows that the processes of a trainer hold in shards, through a real service: rows are summed, jumps are parts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import koopcast
from held import PATH, SHAPES, SPECS, STRIDE, WINDOW, Trainer, Weights, flat, tensors
from koopcast.window.held import Shard
from services import RunningService


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
