"""What the methods predict, where the answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acceleration.methods.lines import along_line, along_masked_line
from acceleration.methods.masks import masked
from acceleration.methods.nodes import node_indices, predict_nodes
from acceleration.methods.pdt import ahead_of_last


def test_the_line_is_the_least_squares_one() -> None:
    snapshots = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    times = torch.stack([torch.arange(10.0), torch.ones(10)], dim=1)
    slopes = torch.linalg.lstsq(times, snapshots).solution[0]
    torch.testing.assert_close(along_line(snapshots, 7), 7 * slopes)


def test_the_mask() -> None:
    displacement = torch.tensor([2.0, -2.0, 0.5, 7.0, -3.0, 1.0])
    change = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 0.0])
    assert masked(displacement, change, 5).tolist() == [2.0, 0.0, 0.0, 0.0, -3.0, 0.0]


def test_the_masked_line_drops_what_turned_round() -> None:
    straight = torch.arange(10.0)
    turned = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 7])
    moved = along_masked_line(torch.stack([straight, turned], dim=1), 4)
    assert float(moved[0]) == pytest.approx(4.0)
    assert float(moved[1]) == 0.0


def linear_path(steps: int, size: int) -> Callable[[int], Tensor]:
    """w(t) = U^t w(0), float64, with eigenvalues in the unit disc."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(0.7, 0.99, size, dtype=torch.float64)
    first = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda step: basis @ (values**step * (basis.T @ first))


@pytest.mark.parametrize("window", [12, 4], ids=["longer than the node", "shorter than the node"])
def test_nodes_recover_linear_operators(window: int) -> None:
    model = nn.Linear(4, 3)
    (indices,) = node_indices(model)
    assert indices.tolist() == [[0, 1, 2, 3, 12], [4, 5, 6, 7, 13], [8, 9, 10, 11, 14]]
    path = linear_path(20, 5)
    modes = 5 if window > 5 else 2  # so few snapshots can tell of no more

    def at(step: int) -> Tensor:
        states = torch.zeros(15, dtype=torch.float64)
        for node in range(3):
            states[indices[node]] = (node + 1) * (path(step) if modes == 5 else short(step))
        return states

    def short(step: int) -> Tensor:
        return (
            torch.tensor([1.0, 2, 3, 4, 5]).double() * 0.9**step
            + torch.tensor([1.0, -1, 1, 0, 0]) * 0.5**step
        )

    predicted = predict_nodes(torch.stack([at(step) for step in range(window)]), [indices], 6)
    torch.testing.assert_close(predicted, at(window + 5), rtol=1e-5, atol=1e-6)


def test_nodes_take_every_weight_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2), nn.Embedding(5, 3)
    )
    numbers = torch.cat([group.flatten() for group in node_indices(model)])
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sorted(numbers.tolist()) == list(range(total))


def test_dmd_of_one_mode_is_exact() -> None:
    snapshots = torch.stack([torch.tensor([3.0, -1.0, 2.0]) * 0.9**step for step in range(5)])
    torch.testing.assert_close(ahead_of_last(snapshots, 5), snapshots[-1] * (0.9**5 - 1.0))
