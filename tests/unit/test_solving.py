"""Blocks solved together are blocks solved alone, whatever their groups and however many at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import koopcast_server.solving as solving_module
from koopcast.operator import Operator
from koopcast.prediction import Block
from koopcast.wire import Layout, TensorSpec, checksum
from koopcast_server.answering import Question
from koopcast_server.held_window import HeldWindow
from koopcast_server.window_shape import JobShape

SIZES = {"a": 600, "b": 40, "c": 700, "d": 3, "e": 600, "f": 9, "g": 900}
"""Long blocks are known by their Gram matrices, short ones by their vectors."""
SNAPSHOTS, STRIDE = 10, 4


def path(size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    times = np.arange(SNAPSHOTS)[:, None]
    modes = sum(rate**times * random.standard_normal(size) for rate in (0.97, 0.8, -0.5))
    return np.asarray(modes + 1e-3 * random.standard_normal((SNAPSHOTS, size)))


PATHS = {name: path(size, seed) for seed, (name, size) in enumerate(SIZES.items())}


def held(names: list[str], **settings: Any) -> tuple[HeldWindow, Operator]:
    operator = Operator(**{"partition": "tensor", "window": SNAPSHOTS, **settings})
    layout = Layout({name: TensorSpec("float64", (SIZES[name],)) for name in names})
    window = HeldWindow(JobShape.of(layout, operator, STRIDE, "float64"), torch.device("cpu"))
    for index in range(SNAPSHOTS):
        data = layout.pack({name: PATHS[name][index] for name in names}).tobytes()
        window.land(0, data, checksum(data))
        window.publish(starts_segment=index == 0)
    return window, operator


def told(window: HeldWindow, operator: Operator) -> list[tuple[tuple[Block, ...], np.ndarray]]:
    answers = window.solve([operator], Question((4.0, 50.0), 2.0))[0]
    return [(answer.blocks, window.displacement(answer).numpy()) for answer in answers]


@pytest.mark.parametrize("scratch_bytes", [64 << 20, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": "gavish-donoho"},
        {"rank": "backtest", "ridge": "backtest"},
        {"observable": "state", "max_jump": 0.5},
        {"delays": 1},
        {"window": "segment", "forgetting": 0.9},
    ],
    ids=str,
)
def test_together_and_alone(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], scratch_bytes: int
) -> None:
    monkeypatch.setattr(solving_module, "_SCRATCH_BYTES", scratch_bytes)
    together = told(*held(list(SIZES), **settings))
    begin = 0
    for number, (name, size) in enumerate(SIZES.items()):
        alone = told(*held([name], **settings))
        for (blocks, displacement), (own, wanted) in zip(together, alone, strict=True):
            found = displacement[begin : begin + size]
            np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9 * np.abs(wanted).max(initial=1e-9))
            assert (blocks[number].name, blocks[number].parameters) == (name, size)
            assert (blocks[number].rank, blocks[number].moved) == (own[0].rank, own[0].moved)
            assert blocks[number].backtest_error == pytest.approx(own[0].backtest_error, rel=1e-6)
            assert blocks[number].jump_scale == pytest.approx(own[0].jump_scale, rel=1e-6)
        begin += size


@pytest.mark.parametrize("settings", [{}, {"partition": "weight"}, {"partition": "network"}], ids=str)
def test_a_page_of_reports_is_a_part_of_all_of_them(settings: dict[str, Any]) -> None:
    window, _ = held(["a", "b", "d", "f"], **settings)
    everything = window.reports(8.0, 0, window.block_count)
    assert len(everything) == window.block_count
    for first, count in ((0, 1), (1, 2), (window.block_count - 1, 5), (3, 0), (window.block_count, 4)):
        page = window.reports(8.0, first, count)
        wanted = everything[first : first + count]
        assert [block.name for block in page] == [block.name for block in wanted]
        for block, other in zip(page, wanted, strict=True):
            assert block.rank == other.rank == len(block.modes)
            assert [mode.eigenvalue for mode in block.modes] == pytest.approx(
                [mode.eigenvalue for mode in other.modes], rel=1e-6
            )


def test_the_summary_weighs_blocks_by_how_far_they_moved() -> None:
    window, operator = held(["a", "c"])
    answer = window.solve([operator], Question((4.0,), 0.0))[0][0]
    errors = [block.backtest_error for block in answer.blocks]
    strides = answer.blocks[0].backtest_steps // STRIDE
    lengths = [np.linalg.norm(PATHS[name][-1] - PATHS[name][-1 - strides]) for name in ("a", "c")]
    wanted = np.sqrt(
        sum((e * n) ** 2 for e, n in zip(errors, lengths, strict=True)) / sum(n**2 for n in lengths)
    )
    assert answer.summary.backtest_error == pytest.approx(wanted, rel=1e-6)
    assert (answer.summary.blocks, answer.summary.moved) == (2, 2)
