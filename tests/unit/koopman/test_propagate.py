"""Whole and broken strides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from koopcast_server.koopman.propagate import advance, each_stride
from koopcast_server.koopman.spectrum import decompose

START = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)


def operator(*values: complex) -> torch.Tensor:
    """A real 3 by 3 operator with these eigenvalues, in a fixed oblique basis."""
    basis = np.array([[1.0, 0.3, 0.1], [0.2, 1.0, -0.4], [0.0, 0.5, 1.0]])
    core = np.zeros((3, 3))
    position = 0
    for value in map(complex, values):
        core[position, position] = value.real
        position += 1
        if value.imag:
            core[position - 1, position] = value.imag
            core[position, position - 1] = -value.imag
            core[position, position] = value.real
            position += 1
    return torch.from_numpy(basis @ core @ np.linalg.inv(basis))[None]


def go(matrix: torch.Tensor, strides: list[float], observable: str) -> torch.Tensor:
    return advance(matrix, decompose(matrix, stable=False)[1], START, strides, observable)  # type: ignore[arg-type]


MATRICES = {
    "real": operator(0.9, 0.5, -0.3),
    "complex": operator(0.97, 0.8 + 0.3j),
    "one": operator(1.0, 1.0, 0.4),
    "nearly one": operator(1 - 1e-9, 1 + 3e-4, 0.9991),
    "zero": operator(0.0, 0.0, 0.7),
    "nothing": torch.zeros(1, 3, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("observable", ["velocity", "state"])
def test_whole_strides_are_the_plain_sum(name: str, observable: str) -> None:
    matrix = MATRICES[name]
    found = go(matrix, [0, 1, 2, 3, 17], observable)[0]
    power, total = START[0], torch.zeros(3, dtype=torch.float64)
    sums = [total]
    for _ in range(17):
        power = matrix[0] @ power
        total = total + power
        sums.append(total if observable == "velocity" else power - START[0])
    for column, count in enumerate((0, 1, 2, 3, 17)):
        torch.testing.assert_close(found[:, column], sums[count], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(each_stride(matrix, START, 3, observable)[0], found[:, 1:4])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["real", "complex", "one", "nearly one"])
@pytest.mark.parametrize("observable", ["velocity", "state"])
def test_halves_of_strides_meet_the_half_step_operator(name: str, observable: str) -> None:
    # where no eigenvalue is negative, A has a real root H: A ** (k / 2) = H ** k
    matrix = operator(0.9, 0.5, 0.3) if name == "real" else MATRICES[name]
    values, vectors = np.linalg.eig(matrix[0].numpy())
    root = (vectors @ np.diag(np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)).real
    found = go(matrix, [0.5, 3.5], observable)[0].numpy()
    start, one = START[0].numpy(), np.eye(3)
    for column, halves in enumerate((1, 7)):
        power = np.linalg.matrix_power(root, halves)
        if observable == "state":
            wanted = power @ start - start
        else:  # (A - 1) s = A (A ** tau - 1) z; solved where A - 1 can be
            wanted = np.linalg.lstsq(
                matrix[0].numpy() - one, matrix[0].numpy() @ (power - one) @ start, rcond=1e-12
            )[0]
            if name in ("one", "nearly one"):
                residual = (matrix[0].numpy() - one) @ (found[:, column] - wanted)
                assert np.abs(residual).max() < 1e-11
                continue
        np.testing.assert_allclose(found[:, column], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("delta", [0.0, 1e-12, -1e-9, 1e-6, 0.99e-3, 1.01e-3, -0.99e-3, -1.01e-3])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_limit_at_one_is_smooth(delta: float, fraction: float) -> None:
    matrix = torch.tensor([[[1.0 + delta]]], dtype=torch.float64)
    start = torch.ones(1, 1, dtype=torch.float64)
    found = float(advance(matrix, decompose(matrix, stable=False)[1], start, [fraction], "velocity"))
    exact = (1 + delta) * (np.expm1(fraction * np.log1p(delta)) / delta if delta else fraction)
    assert found == pytest.approx(exact, rel=1e-12)


def test_near_defective_operators_interpolate_between_whole_strides() -> None:
    matrix = torch.tensor([[[0.9, 1.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.5]]], dtype=torch.float64)
    _, spectrum, _ = decompose(matrix, stable=True)
    assert spectrum.functions is not None
    assert not spectrum.functions.trusted.any()
    for observable in ("velocity", "state"):
        found = go(matrix, [4, 4.25, 5], observable)[0]
        torch.testing.assert_close(found[:, 1], 0.75 * found[:, 0] + 0.25 * found[:, 2])


@pytest.mark.parametrize("observable", ["velocity", "state"])
def test_continuous_in_the_horizon(observable: str) -> None:
    for matrix in MATRICES.values():
        if matrix is MATRICES["nothing"] or matrix is MATRICES["zero"]:
            continue  # an eigenvalue 0 forgets at once: its powers jump at 0
        below, at, above = go(matrix, [6 - 1e-9, 6, 6 + 1e-9], observable)[0].T
        torch.testing.assert_close(below, at, rtol=0, atol=1e-7)
        torch.testing.assert_close(above, at, rtol=0, atol=1e-7)


def test_far_horizons_reach_the_fixed_point() -> None:
    matrix = MATRICES["complex"]
    found = go(matrix, [1e15, 2.0**53 + 2], "state")[0]
    torch.testing.assert_close(found, -START[0][:, None].expand(-1, 2), rtol=1e-9, atol=1e-9)


def test_blocks_of_one_batch_do_not_mix() -> None:
    batch = torch.cat([MATRICES["real"], MATRICES["complex"], operator(1.5, 1.0, 0.2)])
    starts = START.expand(3, -1).contiguous()
    together = advance(batch, decompose(batch, stable=True)[1], starts, [0.3, 5], "velocity")
    for index in range(3):
        one = batch[index : index + 1]
        alone = advance(one, decompose(one, stable=True)[1], START, [0.3, 5], "velocity")
        torch.testing.assert_close(together[index], alone[0])
