"""Processes forked from a trainer after `attach`, such as the workers of a DataLoader: they do nothing, it goes on."""

from __future__ import annotations

import pytest

import koopcast
from faulty import assert_serves
from nursery import ForkedService, Nursery

SECONDS = 60.0
CODE = """
import os, sys, threading
import torch, koopcast
from torch.utils.data import DataLoader, Dataset
from trainers import data, smooth_net
target = sys.argv[1] or None
model = smooth_net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
probe = lambda: 1.0
ahead = koopcast.attach(model, optimizer, target, job="forking", every=2, probe=probe, wait_seconds=0.2)
ahead._schedule.pausing = False  # though every jump is refused: the snapshots of all steps are counted below
parent = os.getpid()
inputs, targets = data()


class Meddling(Dataset):
    # Each worker has a hook in it that it never asked for, and does with it what it should not.
    def __len__(self):
        return len(inputs)

    def __getitem__(self, index):
        if os.getpid() != parent:
            ahead.stats()
            optimizer.step()
            if index % 7 == 0:
                ahead.close()
        return inputs[index], targets[index]


def train(epochs):
    for _ in range(epochs):
        for x, y in DataLoader(Meddling(), batch_size=8, num_workers=2, multiprocessing_context="fork"):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()


train(3)
before = ahead.stats()
for _ in range(2):  # one that ends as interpreters do, and the parent's job is none of its affairs
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
train(3)
stats = ahead.stats()
ahead.close()
print(stats.steps, stats.snapshots_pushed + stats.snapshots_dropped, stats.connected)
print(stats.snapshots_pushed > before.snapshots_pushed > 0)
print([thread.name for thread in threading.enumerate() if "koopcast" in thread.name])
"""


@pytest.mark.parametrize("embedded", [False, True], ids=["remote", "embedded"])
def test_workers_of_a_loader_leave_the_hook_alone(
    cradle: Nursery, own_service: ForkedService, *, embedded: bool
) -> None:
    script = cradle.script(CODE, "" if embedded else own_service.target)
    status, output, errors = script.finish(SECONDS)
    assert (status, output) == (0, "48 24 True\nTrue\n[]\n"), errors
    assert "Traceback" not in errors
    if not embedded:
        with koopcast.connect(own_service.target) as client:
            assert client.jobs() == []  # closed by the parent, and by nobody before
        assert_serves(own_service.target, "other")
