"""A trainer's process ends, in whatever way, with uploads on their way: soon, without noise, its job as documented."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

import koopcast
from faulty import assert_serves, wait_until
from nursery import ForkedService, Nursery

SECONDS = 30.0
"""A script's whole life; the machine is shared."""
END_SECONDS = 15.0
"""From a signal to the end: at most 6 s where the service hangs, and a second where it does not."""

PREAMBLE = """
import sys, threading, time, warnings
import torch, koopcast
from trainers import steps
warnings.simplefilter("error")
target, job = sys.argv[1] or None, sys.argv[2]
model = torch.nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
inputs = torch.rand(1, 300)
loss = lambda model: model(inputs).square().mean()

def attach():
    return koopcast.attach(model, optimizer, target, job=job, every=1, probe=lambda: 1.0)

def train(count):
    for _ in steps(model, optimizer, count, loss):
        pass

def train_for_ever():
    train(10)
    print("training", flush=True)
    while True:
        train(1)
"""
ENDS = {
    "plain": "ahead = attach(); train(30)",
    "closed": "ahead = attach(); train(30); ahead.close()",
    "sys.exit": "ahead = attach(); train(30); sys.exit(3)",
    "exception": "ahead = attach(); train(30); raise ZeroDivisionError",
    "exception in the block": "with attach() as ahead:\n    train(30)\n    raise ZeroDivisionError",
    "sys.exit in a thread": (
        "ahead = attach()\ndef run():\n    train(30)\n    sys.exit(3)\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    ),
}
STATUSES = {"sys.exit": 3, "exception": 1, "exception in the block": 1}


@pytest.fixture(scope="module")
def service(cradle: Nursery) -> Iterator[ForkedService]:
    started = cradle.service("--memory-limit", "1GiB", "--http", "off", "--log-level", "warning")
    started.start()
    yield started
    started.kill()
    assert started.errors == []


@pytest.mark.parametrize(
    ("end", "embedded"), [*((end, False) for end in ENDS), ("plain", True), ("exception", True)]
)
def test_of_its_own(
    cradle: Nursery, service: ForkedService, job_name: str, end: str, *, embedded: bool
) -> None:
    script = cradle.script(PREAMBLE + ENDS[end], "" if embedded else service.target, job_name)
    status, output, errors = script.finish(SECONDS)
    assert (status, output) == (STATUSES.get(end, 0), "")
    if "exception" in end:
        assert errors.count("Traceback") == 1
        assert errors.endswith("\nZeroDivisionError\n")
    else:
        assert errors == ""
    if not embedded:
        assert_job(service, job_name, kept=end == "exception in the block")


@pytest.mark.parametrize(
    ("number", "embedded"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_by_a_signal(
    cradle: Nursery, service: ForkedService, job_name: str, number: signal.Signals, *, embedded: bool
) -> None:
    code = PREAMBLE + "ahead = attach(); train_for_ever()"
    script = cradle.script(code, "" if embedded else service.target, job_name)
    assert script.stdout.readline() == "training\n"
    script.send_signal(number)
    status, _, errors = script.finish(END_SECONDS)
    assert status == -number
    if number == signal.SIGINT:
        assert errors.count("Traceback") == 1
        assert errors.endswith("\nKeyboardInterrupt\n")
        if not embedded:
            assert_job(service, job_name, kept=False)
    else:  # nothing of ours runs then: the lease expires by itself
        assert errors == ""
        assert_job(service, job_name, kept=True)


def test_though_the_service_hangs(cradle: Nursery, own_service: ForkedService) -> None:
    script = cradle.script(PREAMBLE + "ahead = attach(); train_for_ever()", own_service.target, "hanging")
    assert script.stdout.readline() == "training\n"
    own_service.pause()
    time.sleep(0.3)
    script.send_signal(signal.SIGINT)
    status, _, errors = script.finish(END_SECONDS)
    assert (status, errors.count("Traceback")) == (-signal.SIGINT, 1)
    own_service.resume()
    assert_serves(own_service.target, "other")


def assert_job(service: ForkedService, name: str, *, kept: bool) -> None:
    with koopcast.connect(service.target) as client:
        if kept:
            assert client.job_status(name).snapshots_accepted > 0
        else:
            wait_until(lambda: name not in [status.name for status in client.jobs()])
