"""Which sharded models are taken, read off meshes and placements; the others are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import koopcast
from koopcast.hook.sharding import are_sharded, check_sharding, is_sharded, local, local_shapes

distributed = pytest.importorskip("torch.distributed.tensor")
fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

PROCESSES = 4


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """The first of four processes, of which there is only this one: nothing here communicates."""
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=PROCESSES)
    yield
    torch.distributed.destroy_process_group()


def placed(shape: tuple[int, ...], mesh_shape: tuple[int, ...], *placements: Any) -> nn.Parameter:
    """A parameter with these placements on a mesh of this shape."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", mesh_shape)
    return nn.Parameter(distributed.DTensor.from_local(torch.ones(shape), mesh, placements, run_check=False))


def shard(dimension: int = 0) -> Any:
    return distributed.Shard(dimension)


def test_parts_in_one_or_several_dimensions_are_taken() -> None:
    parameters = {
        "rows": placed((2, 3), (4,), shard()),
        "rows and columns": placed((2, 3), (2, 2), shard(0), shard(1)),
        "replicated once": placed((2, 3), (4, 1), shard(), distributed.Replicate()),
        "nothing here": placed((0, 3), (4,), shard()),
    }
    check_sharding(nn.Linear(1, 1), parameters, PROCESSES)
    assert are_sharded(parameters)
    assert local_shapes(parameters)["nothing here"] == (0, 3)


@pytest.mark.parametrize(
    ("parameter", "why"),
    [
        (lambda: placed((2, 3), (2, 2), distributed.Replicate(), shard()), "replicated along dimension 0"),
        (lambda: placed((2, 3), (4,), distributed.Partial()), "a partial sum along dimension 0"),
        (lambda: nn.Parameter(torch.ones(2, 3)), "whole in every process"),
    ],
)
def test_what_is_not_a_part_is_refused_by_name(parameter: Any, why: str) -> None:
    parameters = {"good": placed((2, 3), (4,), shard()), "bad": parameter()}
    with pytest.raises(koopcast.InvalidArgument, match=f"'bad' is {why}"):
        check_sharding(nn.Linear(1, 1), parameters, PROCESSES)


def test_a_mesh_of_some_processes_is_refused() -> None:
    with pytest.raises(koopcast.InvalidArgument, match="is sharded over 4 processes"):
        check_sharding(nn.Linear(1, 1), {"bad": placed((2, 3), (4,), shard())}, 8)


def test_the_first_fsdp_is_refused() -> None:
    wrapped = nn.Sequential(type("FullyShardedDataParallel", (nn.Module,), {})())
    with pytest.raises(koopcast.InvalidArgument, match="fully_shard"):
        check_sharding(wrapped, {}, PROCESSES)


def test_the_local_part_shares_the_memory_of_the_whole() -> None:
    sharded, plain = placed((2, 3), (4,), shard()), nn.Parameter(torch.ones(2))
    part: Any = sharded
    local(sharded).fill_(7.0)
    assert torch.equal(part.to_local(), torch.full((2, 3), 7.0))
    assert local(plain) is plain
    assert (is_sharded(sharded), is_sharded(plain), is_sharded(plain.detach())) == (True, False, False)


def test_pushing_whole_snapshots_of_parts_is_refused() -> None:
    model = nn.Module()
    model.register_parameter("part", placed((2, 3), (4,), shard()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(koopcast.InvalidArgument, match='snapshots="trainer"'):
        koopcast.attach(model, optimizer, "127.0.0.1:1", snapshots="server")
