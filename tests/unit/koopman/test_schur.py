"""Schur forms and eigenpairs of matrices that are easy, defective, or built to break LAPACK."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from koopcast_server.koopman.eigen import eigenpairs
from koopcast_server.koopman.schur import schur


def jordan(size: int, eigenvalue: float, coupling: float = 1.0) -> Tensor:
    return eigenvalue * torch.eye(size) + coupling * torch.ones(size - 1).diag(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(matrices: Tensor) -> Tensor:
    """The same operator on other axes."""
    basis = torch.linalg.qr(random(*matrices.shape)).Q
    same: Tensor = basis @ matrices.double() @ basis.mT
    return same


ROTATION = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
MATRICES: dict[str, Tensor] = {
    "random": random(5, 6, 6),
    "complex": torch.complex(random(3, 4, 4), random(3, 4, 4, seed=1)),
    "one number": random(4, 1, 1),
    "two": random(4, 2, 2),
    "jordan": turned(jordan(5, 0.9)[None]),
    "jordan, strong coupling": turned(jordan(4, 1.2, 1e6)[None]),
    "two jordan blocks": turned(torch.kron(torch.eye(2), jordan(3, 0.9))[None]),
    "defective pair": turned(torch.kron(jordan(2, 1.0), torch.eye(2)).double()[None] * 0.5)
    + turned(torch.kron(torch.eye(2).double(), ROTATION)[None]),
    "nilpotent": turned(jordan(5, 0.0)[None]),
    "zero": torch.zeros(2, 4, 4, dtype=torch.float64),
    "identity": torch.eye(4, dtype=torch.float64)[None],
    "diagonal": torch.arange(5.0, dtype=torch.float64).diag()[None],
    "huge": random(2, 4, 4) * 1e150,
    "tiny": random(2, 4, 4) * 1e-150,
    "mixed": torch.stack([turned(jordan(4, 0.9)[None])[0], random(4, 4), torch.zeros(4, 4).double()]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_schur(name: str) -> None:
    matrices = MATRICES[name]
    kept = matrices.clone()
    unitary, triangular = schur(matrices)
    size = matrices.shape[-1]
    eye = torch.eye(size, dtype=torch.complex128).expand_as(unitary)
    torch.testing.assert_close(unitary @ unitary.mH, eye, rtol=0, atol=1e-13)
    assert (triangular.tril(-1) == 0).all()
    # the backward error of eigenvectors that hardly exist is no larger than of others
    apart = torch.linalg.matrix_norm(unitary @ triangular @ unitary.mH - matrices)
    assert (apart <= 1e-12 * torch.linalg.matrix_norm(matrices)).all()
    assert torch.equal(matrices, kept)


def test_the_diagonal_holds_the_eigenvalues() -> None:
    _, triangular = schur(turned(torch.diag(torch.tensor([0.9, -0.5, 0.2, 2.0]))[None]))
    found = triangular[0].diagonal()
    assert sorted(found.real.tolist()) == pytest.approx([-0.5, 0.2, 0.9, 2.0])
    assert found.imag.abs().max() < 1e-14


@pytest.mark.parametrize("name", MATRICES)
def test_eigenpairs(name: str) -> None:
    matrices = MATRICES[name]
    values, vectors = eigenpairs(matrices)
    apart = torch.linalg.matrix_norm(matrices.to(vectors.dtype) @ vectors - vectors * values[:, None, :])
    assert (apart <= 1e-13 * torch.linalg.matrix_norm(matrices)).all()
    torch.testing.assert_close(
        torch.linalg.vector_norm(vectors, dim=-2), torch.ones_like(values.real), rtol=1e-12, atol=0
    )


def test_eigenpairs_are_torchs() -> None:
    matrices = random(20, 5, 5)
    for found, wanted in zip(eigenpairs(matrices), torch.linalg.eig(matrices), strict=True):
        assert torch.equal(found, wanted)


def test_eigenpairs_come_back_where_products_underflow() -> None:
    # LAPACK gives up on this one. It is not asked here: MKL's may do worse than give up.
    matrix = torch.tensor(
        [[-9e-249, 5.45e-30, 1.0], [1.0, -1.9e-248, -9.7e-249], [5.45e-30, -1.9e-248, -2.8e-248]]
    )
    values, vectors = eigenpairs(matrix.double()[None])
    assert values.isfinite().all()
    assert values.abs().max() < 1e-9  # the cube of each is of the order 1e-30
    assert (matrix.to(vectors.dtype) @ vectors[0] - vectors[0] * values).abs().max() < 1e-15
