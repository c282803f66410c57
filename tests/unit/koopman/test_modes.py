"""Modes as people see them: of systems whose modes are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import dmd_reference
from koopcast_server.koopman import Modes, Observable, OperatorSettings, Source, report
from koopcast_server.koopman.modes import modes_of
from koopcast_server.koopman.pairs import Pairs
from sources import products, streamed, vectors

EXACT: dict[str, Any] = {"rank_rule": "fixed", "rank": 8, "ridge": 0.0, "stabilize": False}
FORMS = ["gram", "vectors", "streamed"]


def modes(snapshots: np.ndarray, form: str = "gram", **others: Any) -> Modes:
    told: Source = products(snapshots)
    if form != "gram":
        told = vectors(snapshots) if form == "vectors" else streamed(snapshots, observable="velocity")
    return report(told, OperatorSettings(**{**EXACT, **others}))[1]


@pytest.mark.parametrize("form", FORMS)
def test_time_constants_of_a_known_system(form: str) -> None:
    path = dmd_reference.linear_system([0.98, 0.9 * np.exp(0.3j), 0.5], 6, 20, seed=3)
    found = modes(path, form)
    assert found.eigenvalues[0].abs().tolist() == pytest.approx([0.98, 0.9, 0.9, 0.5], abs=1e-6)
    wanted = [-1.0 / math.log(modulus) for modulus in (0.98, 0.9, 0.9, 0.5)]
    assert found.decay_strides[0].tolist() == pytest.approx(wanted, rel=1e-4)
    assert found.residuals[0].max() < 1e-5
    assert float(found.energies.sum()) == pytest.approx(1.0)
    assert (found.energies > 0).all()


def test_growing_standing_and_dead_modes_have_time_constants() -> None:
    # a velocity that grows, one that stays, and one that is gone after a stride
    velocity = np.zeros((9, 3))
    velocity[:, 0], velocity[:, 1], velocity[0, 2] = 1.25 ** np.arange(9), 1.0, 1.0
    path = np.concatenate([np.zeros((1, 3)), velocity.cumsum(0)])
    found = modes(path, "vectors")
    assert found.eigenvalues[0].abs().tolist() == pytest.approx([1.25, 1.0, 0.0], abs=1e-12)
    assert float(found.decay_strides[0, 0]) == pytest.approx(-1.0 / math.log(1.25))
    assert abs(float(found.decay_strides[0, 1])) > 1e12  # infinite but for rounding
    assert float(found.decay_strides[0, 2]) == pytest.approx(0.0, abs=0.05)


def test_energies_are_shares_of_the_motion() -> None:
    # three weights that decay on their own: the modes are the axes, the amplitudes are the velocities
    powers = np.array([0.9, 0.8, 0.5]) ** np.arange(12)[:, None]
    path = powers * np.array([1.0, 5.0, 20.0])
    inputs = np.diff(path, axis=0)[:-1]
    wanted = (inputs**2).sum(0) / (inputs**2).sum()
    for form in FORMS:
        assert modes(path, form).energies[0].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_a_pair_shares_its_energy() -> None:
    found = modes(dmd_reference.linear_system([0.9 * np.exp(0.5j)], 30, 12))
    assert found.energies[0].tolist() == pytest.approx([0.5, 0.5])
    one, other = found.eigenvalues[0].tolist()
    assert one == pytest.approx(other.conjugate())


def test_noise_makes_residuals() -> None:
    clean = dmd_reference.linear_system([0.97, 0.9 * np.exp(0.3j)], 40, 16, seed=1)
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    worst = [float(modes(clean + level * noise, rank=3).residuals.max()) for level in (0.0, 1e-4, 1e-2, 1.0)]
    assert worst == sorted(worst)
    assert worst[0] < 1e-6
    assert worst[-1] > 0.1


def test_a_residual_counts_what_leaves_the_modes() -> None:
    # x1 → x2 + e3: within the one mode kept it is an eigenvector of 1, but it is moved by 1 out of it
    inputs = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    outputs = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]], dtype=torch.float64)
    pairs = Pairs(inputs, outputs, inputs[:, :, 0], 3, 3, torch.full((len(inputs),), 3.0).double(), 2)
    basis = torch.eye(3, 1, dtype=torch.float64)[None]
    found = modes_of(pairs, basis, torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([1]))
    assert found.residuals.tolist() == [[pytest.approx(1.0)]]
    assert found.decay_strides.tolist() == [[math.inf]]
    assert found.energies.tolist() == [[1.0]]


def test_blocks_of_other_rank_are_padded() -> None:
    one = dmd_reference.linear_system([0.9], 30, 12)
    three = dmd_reference.linear_system([0.97, 0.9 * np.exp(0.3j)], 30, 12, seed=1)
    found = report(products(one, three, np.zeros((12, 30))), OperatorSettings(**EXACT))[1]
    assert (~found.eigenvalues.isnan()).sum(-1).tolist() == [1, 3, 0]
    for measure in (found.energies, found.decay_strides, found.residuals):
        assert (~measure.isnan()).sum(-1).tolist() == [1, 3, 0]
    torch.testing.assert_close(found.energies[:2].nansum(-1), torch.ones(2, dtype=torch.float64))


def test_modes_that_cannot_be_told_apart_have_no_energies() -> None:
    defective = torch.tensor([[[0.9, 1.0], [0.0, 0.9]]], dtype=torch.float64)
    inputs = torch.eye(2, dtype=torch.float64)[None]
    pairs = Pairs(
        inputs, defective @ inputs, inputs[:, :, 1], 2, 3, torch.full((len(inputs),), 2.0).double(), 2
    )
    found = modes_of(pairs, inputs, defective, torch.tensor([2]))
    assert found.energies.isnan().all()
    assert found.eigenvalues[0].real.tolist() == pytest.approx([0.9, 0.9])
    assert found.residuals.max() < 1e-7


@pytest.mark.parametrize("observable", ["velocity", "state"])
def test_the_order_is_that_of_the_reports_eigenvalues(observable: Observable) -> None:
    path = dmd_reference.linear_system([0.97, -0.8, 0.5], 30, 12)
    told, found = report(products(path), OperatorSettings(observable, **EXACT))
    torch.testing.assert_close(found.eigenvalues, told.eigenvalues)
