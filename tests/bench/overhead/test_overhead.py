"""The benchmark itself, small: runs with and without the hook, and what is said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from overhead.run import pinned_service
from overhead.tables import markdown
from overhead.trainer import Setting, run

STEPS = 40


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_time_and_memory() -> None:
    with pinned_service() as target:
        timed = Setting("0.1M", 16, STEPS, every=5, window=3, target=target)
        runs = {mode: [run(dataclasses.replace(timed, mode=mode))] for mode in ("plain", "observe", "jump")}
        weighed = Setting("0.1M", 16, 20, "jump", target, every=2, window=3, weigh=True, wait_seconds=5.0)
        weight = run(weighed)
    for (one,) in runs.values():
        one["median_step_seconds"] = float(np.median(one["step_seconds"]))
        one["mean_step_seconds"] = float(np.mean(one["step_seconds"]))
        one["longest_step_seconds"] = max(one["step_seconds"])
        assert len(one["step_seconds"]) == STEPS
        assert 0 < sum(one["step_seconds"]) <= one["run_seconds"]
    stats = runs["observe"][0]["stats"]
    taken = stats["snapshots_pushed"] + stats["snapshots_dropped"]
    assert STEPS // 5 - 2 <= taken <= STEPS // 5  # the last ones may be under way
    assert stats["jumps_accepted"] == 0
    assert weight["stats"]["jumps_proposed"] >= 1
    text = markdown(
        {
            "machine": "here",
            "time": [{"setting": dataclasses.asdict(timed), "runs": runs}],
            "narrow": [],
            "memory": [{"setting": dataclasses.asdict(weighed), **weight}],
        }
    )
    assert "| 99,670 | 16 | 5 |" in text
    assert "| 0.1M | momentum | no |" in text
