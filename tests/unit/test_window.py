"""The window: what it stores, what it says of it, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch

import koopcast.window as window_module
from koopcast.window import Window, WindowProducts

BOUNDS = [0, 7, 7, 12, 40]


def window(length: int = 4, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None) -> Window:
    return Window(BOUNDS, length, snapshot_dtype=dtype, window_dtype=stored or dtype)


def snapshots(count: int, size: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, size), generator=generator, dtype=torch.float64)


def push(target: Window, rows: Iterable[torch.Tensor]) -> None:
    for row in rows:
        target.spare.copy_(row)
        target.publish()


def direct(held: torch.Tensor, bounds: list[int], stored: torch.dtype = torch.float64) -> WindowProducts:
    """Products of these snapshots, block by block, in float64."""
    velocities, last = held.double().diff(dim=0).to(stored).double(), held[-1].double()
    blocks = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    return WindowProducts(
        torch.stack([velocities[:, part] @ velocities[:, part].T for part in blocks]),
        torch.stack([velocities[:, part] @ last[part] for part in blocks]),
        torch.stack([last[part] @ last[part] for part in blocks]),
        0.0,
        0.0,
    )


def check(target: Window, held: torch.Tensor, bounds: list[int], stored: torch.dtype = torch.float32) -> None:
    found, wanted = target.products(), direct(held, bounds, stored)
    assert target.snapshots_held == len(held)
    for mine, true in zip(found[:3], wanted[:3], strict=True):
        assert mine.dtype == torch.float64
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)


def test_products_from_the_first_snapshot_to_beyond_the_last_slot() -> None:
    target, rows = window(), snapshots(11).float()
    empty = target.products()
    assert (empty.velocity_gram.shape, empty.velocity_dot_last.shape) == ((4, 0, 0), (4, 0))
    assert empty.last_squared.tolist() == [0.0] * 4
    for count in range(1, 12):
        push(target, rows[count - 1 : count])
        check(target, rows[max(0, count - 4) : count], BOUNDS)
        assert torch.equal(target.last, rows[count - 1])


def test_the_shortest_window_holds_one_velocity() -> None:
    target, rows = window(length=2), snapshots(5).float()
    push(target, rows)
    check(target, rows[-2:], BOUNDS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_combinations(dtype: torch.dtype) -> None:
    target, rows = window(dtype=dtype), snapshots(7).to(dtype)
    push(target, rows)
    velocities = rows[-4:].double().diff(dim=0).to(dtype).double()
    coefficients, last = snapshots(4, 3, seed=1), snapshots(1, 4, seed=2)[0]
    out = torch.full((40,), torch.nan, dtype=torch.float64)
    target.combine(coefficients, last, out)
    wanted = torch.cat(
        [
            coefficients[block] @ velocities[:, a:b] + last[block] * rows[-1, a:b].double()
            for block, (a, b) in enumerate(itertools.pairwise(BOUNDS))
        ]
    )
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance)
    narrow = torch.empty(40, dtype=torch.bfloat16)
    target.combine(coefficients, last, narrow)
    torch.testing.assert_close(narrow.double(), wanted, rtol=2.0**-8, atol=1e-5)
    target.combine(coefficients, None, out)
    torch.testing.assert_close(out[:7], coefficients[0] @ velocities[:, :7], rtol=tolerance, atol=tolerance)


def test_long_blocks_are_cut_and_short_ones_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "_PIECE_ON_CPU", 16)
    bounds = [0, 1, 3, 3, 50, 51, 53, 70, 73, 76, 79, 82, 85, 88, 91, 91, 191]
    target = Window(bounds, 5, snapshot_dtype=torch.float64, window_dtype=torch.float64)
    pieces = target._pieces
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, 191)
    assert max(piece.stop - piece.start for piece in pieces) <= 16
    assert any(piece.end - piece.first > 1 for piece in pieces)
    rows = snapshots(9, 191)
    push(target, rows)
    check(target, rows[-5:], bounds, torch.float64)
    out = torch.empty(191, dtype=torch.float64)
    coefficients, last = snapshots(16, 4, seed=1), snapshots(1, 16, seed=2)[0]
    target.combine(coefficients, last, out)
    velocities = rows[-5:].diff(dim=0)
    for block, (a, b) in enumerate(itertools.pairwise(bounds)):
        torch.testing.assert_close(
            out[a:b], coefficients[block] @ velocities[:, a:b] + last[block] * rows[-1, a:b]
        )


def test_blocks_with_zero_coefficients_give_exact_zeros() -> None:
    target = window()
    push(target, snapshots(4))
    coefficients = torch.zeros(4, 3, dtype=torch.float64)
    coefficients[2] = 1.0
    out = torch.full((40,), torch.nan)
    target.combine(coefficients, None, out)
    assert (out[:7] == 0).all()
    assert (out[12:] == 0).all()
    assert (out[7:12] != 0).all()


def test_half_precision_keeps_differences() -> None:
    # Weights near 1 moving by 1e-3: bfloat16 weights would not even see it.
    start, velocity = torch.ones(1000, dtype=torch.float64), snapshots(1, 1000)[0] * 1e-3
    target = Window([0, 1000], 4, snapshot_dtype=torch.float32, window_dtype=torch.bfloat16)
    rows = torch.stack([start + i * velocity for i in range(4)])
    push(target, rows)
    out = torch.empty(1000)
    target.combine(torch.ones(1, 3, dtype=torch.float64), None, out)
    true = 3 * velocity
    assert float((out.double() - true).norm() / true.norm()) < 3e-3
    assert target.products().window_epsilon == 2.0**-7
    assert target.products().snapshot_epsilon == 2.0**-23
    check(target, rows.float(), [0, 1000], torch.bfloat16)


def test_differences_too_large_for_the_window_stay_finite() -> None:
    target = Window([0, 3], 3, snapshot_dtype=torch.float32, window_dtype=torch.float16)
    push(target, torch.tensor([[1e30, -1e30, 1.0], [-1e30, 1e30, 2.0]]))
    assert target.products().velocity_gram.isfinite().all()
    wide = Window([0, 1], 3, snapshot_dtype=torch.float64, window_dtype=torch.float64)
    push(wide, torch.tensor([[1.7e308], [-1.7e308]], dtype=torch.float64))
    out = torch.empty(1, dtype=torch.float64)
    wide.combine(torch.ones(1, 1, dtype=torch.float64), None, out)
    assert out.item() == -torch.finfo(torch.float64).max


def test_a_broken_upload_costs_nothing() -> None:
    target, rows = window(), snapshots(5).float()
    push(target, rows)
    before = target.products()
    target.spare.fill_(torch.nan)
    for mine, kept in zip(target.products()[:3], before[:3], strict=True):
        assert torch.equal(mine, kept)
    assert torch.equal(target.last, rows[4])
    more = snapshots(1, seed=9).float()
    push(target, more)
    check(target, torch.cat([rows[-3:], more]), BOUNDS)


@pytest.mark.parametrize("held", [2, 4, 6])
def test_a_publish_that_fails_leaves_a_window_that_works(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    target, rows = window(), snapshots(8).float()
    push(target, rows[:held])

    def fail(*_: object) -> None:
        target._velocities[target._next].fill_(1e9)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(target, "_accumulate", fail)
        target.spare.copy_(rows[held])
        with pytest.raises(MemoryError):
            target.publish()
    kept = min(held, 3)  # a full window of 4 has lost its oldest
    check(target, rows[held - kept : held], BOUNDS)
    out = torch.empty(40)
    target.combine(torch.ones(4, kept - 1, dtype=torch.float64), None, out)
    torch.testing.assert_close(out, rows[held - 1] - rows[held - kept])
    target.publish()  # the snapshot is still in the spare slot
    check(target, rows[held - kept : held + 1], BOUNDS)


def test_clear_forgets() -> None:
    target, rows = window(), snapshots(9).float()
    push(target, rows[:6])
    target.clear()
    assert target.snapshots_held == 0
    assert target.products().velocity_gram.shape == (4, 0, 0)
    assert target.products().last_squared.tolist() == [0.0] * 4
    for count in range(1, 4):
        push(target, rows[5 + count : 6 + count])
        check(target, rows[6 : 6 + count], BOUNDS)


def test_products_are_copies() -> None:
    target, rows = window(), snapshots(5).float()
    push(target, rows[:4])
    before = target.products()
    kept = [tensor.clone() for tensor in before[:3]]
    push(target, rows[4:])
    assert all(torch.equal(a, b) for a, b in zip(before[:3], kept, strict=True))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_memory_is_what_was_said(stored: torch.dtype) -> None:
    target = window(length=6, stored=stored)
    said = Window.bytes_needed(40, 6, snapshot_dtype=torch.float32, window_dtype=stored, block_count=4)
    tensors = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in vars(target).values()
        if isinstance(value, torch.Tensor)
    }
    assert target.nbytes == said == sum(tensors.values())
    assert said == 40 * (5 * stored.itemsize + 8) + 4 * 8 * (25 + 5 + 1) + 4 * 8


def test_spare_and_last_are_never_the_same_array() -> None:
    target, addresses = window(), set()
    for row in snapshots(5):
        assert target.spare.data_ptr() != target.last.data_ptr()
        addresses |= {target.spare.data_ptr(), target.last.data_ptr()}
        push(target, row[None])
    assert len(addresses) == 2


@pytest.mark.parametrize(
    ("bounds", "length", "dtype", "message"),
    [
        ([0], 3, torch.float32, "block_bounds"),
        ([1, 5], 3, torch.float32, "block_bounds"),
        ([0, 5, 4], 3, torch.float32, "block_bounds"),
        ([0, 0], 3, torch.float32, "element"),
        ([0, 5], 1, torch.float32, "at least 2"),
        ([0, 5], 3, torch.int32, "floating"),
    ],
)
def test_windows_that_cannot_be(bounds: list[int], length: int, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(bounds, length, snapshot_dtype=dtype, window_dtype=torch.float32)


def test_combinations_of_a_wrong_shape_are_refused() -> None:
    target = window()
    push(target, snapshots(3))
    good, out = torch.ones(4, 2, dtype=torch.float64), torch.empty(40)
    with pytest.raises(ValueError, match="velocity_coefficients"):
        target.combine(torch.ones(4, 3, dtype=torch.float64), None, out)
    with pytest.raises(ValueError, match="last_coefficients"):
        target.combine(good, torch.ones(3, dtype=torch.float64), out)
    for bad in (torch.empty(39), torch.empty(40, dtype=torch.int64), torch.empty(40, device="meta")):
        with pytest.raises(ValueError, match="out"):
            target.combine(good, None, bad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_says_what_the_cpu_says() -> None:
    bounds = [0, 5, 9, 200_000, 200_030, 200_041]
    rows = snapshots(7, bounds[-1]).float()
    windows = [
        Window(bounds, 5, snapshot_dtype=torch.float32, window_dtype=torch.float32, device=device)
        for device in ("cpu", "cuda")
    ]
    answers = []
    for target in windows:
        push(target, rows)
        out = torch.empty(bounds[-1], device=target.device)
        target.combine(snapshots(5, 4, seed=1), snapshots(1, 5, seed=2)[0], out)
        answers.append(out.cpu())
    on_cpu, on_device = (target.products() for target in windows)
    for mine, true in zip(on_device[:3], on_cpu[:3], strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)
