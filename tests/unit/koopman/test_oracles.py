"""Every method against somebody else's: PyDMD, deeptime, SciPy, or its paper's formula in NumPy."""

from __future__ import annotations

from typing import Any

import deeptime.decomposition
import numpy as np
import pytest
from pydmd import DMD, FbDMD, HankelDMD

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import Observable, OperatorSettings, Source, predict, report
from sources import displacement, products, streamed, vectors

# PyDMD warns of the condition of low-rank data, which training data is.
pytestmark = pytest.mark.filterwarnings("ignore:Input data condition number:UserWarning")

RANK = 3
STRIDES = (1, 6)
CLEAN = dmd_reference.linear_system([0.97, 0.9 * np.exp(0.3j)], 40, 16, seed=1, fixed_point=0.0)
NOISY = CLEAN + 0.01 * np.random.default_rng(0).standard_normal(CLEAN.shape)
SHORT = dmd_reference.linear_system([0.97, 0.9 * np.exp(0.3j)], 5, 16, seed=1)
SHORT = SHORT + 0.01 * np.random.default_rng(0).standard_normal(SHORT.shape)
both_observables = pytest.mark.parametrize("observable", ["velocity", "state"])


def settings(observable: Observable, **others: Any) -> OperatorSettings:
    """Plain least squares of fixed rank, nothing else, and no refusal, but for what `others` say."""
    plain = {"rank_rule": "fixed", "rank": RANK, "ridge": 0.0, "stabilize": False, "always_move": True}
    return OperatorSettings(observable, **{**plain, **others})


def path(snapshots: Array, observable: Observable) -> Array:
    """What the observable's operator advances, (T, n)."""
    return np.diff(snapshots, axis=0) if observable == "velocity" else snapshots


def assert_eigenvalues(source: Source, chosen: OperatorSettings, wanted: Array, digits: float = 1e-9) -> None:
    found = report(source, chosen)[0].eigenvalues[0].numpy()
    assert len(found) == len(wanted)
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(wanted), rtol=0, atol=digits)


def assert_continues(
    source: Source,
    chosen: OperatorSettings,
    snapshots: Array,
    modes: Array,
    eigenvalues: Array,
    digits: float = 1e-8,
) -> None:
    """The answer is that of modes and eigenvalues, as anybody's DMD gives them, from the last vector."""
    start = dmd_reference.stacked(path(snapshots, chosen.observable), chosen.delays)[-1]
    amplitudes = np.linalg.pinv(modes) @ start
    batch = predict(source, chosen, STRIDES)
    for index, strides in enumerate(STRIDES):
        factor = eigenvalues**strides - 1.0
        if chosen.observable == "velocity":
            factor = np.sum([eigenvalues**i for i in range(1, strides + 1)], axis=0)
        wanted = (modes @ (factor * amplitudes)).real[: snapshots.shape[1]]
        found = displacement(batch, snapshots, index)
        assert np.linalg.norm(found - wanted) < digits * np.linalg.norm(wanted)


@both_observables
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("dual", [True, False])
def test_pydmd(observable: Observable, rank: int, dual: bool) -> None:
    snapshots = NOISY if dual else SHORT
    source = products(snapshots) if dual else vectors(snapshots)
    chosen = settings(observable, rank=rank)
    theirs = DMD(svd_rank=rank, exact=False).fit(path(snapshots, observable).T)
    assert_eigenvalues(source, chosen, theirs.eigs)
    assert_continues(source, chosen, snapshots, theirs.modes, theirs.eigs)


@both_observables
def test_pydmds_exact_modes(observable: Observable) -> None:
    # Exact modes lie in the outputs, projected ones in the inputs: the same where data is exact, not else.
    theirs = DMD(svd_rank=RANK, exact=True)
    theirs.fit(path(CLEAN, observable).T)
    assert_continues(products(CLEAN), settings(observable), CLEAN, theirs.modes, theirs.eigs, 1e-6)
    theirs.fit(path(NOISY, observable).T)
    assert_eigenvalues(products(NOISY), settings(observable), theirs.eigs)


@both_observables
def test_deeptime(observable: Observable) -> None:
    advanced = path(NOISY, observable)
    theirs = (
        deeptime.decomposition.DMD(mode="standard", rank=RANK)
        .fit((advanced[:-1], advanced[1:]))
        .fetch_model()
    )
    assert_eigenvalues(products(NOISY), settings(observable), theirs.eigenvalues)
    assert_continues(products(NOISY), settings(observable), NOISY, theirs.modes.T, theirs.eigenvalues)


@both_observables
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_energy_rank_is_pydmds(observable: Observable, energy: float) -> None:
    theirs = DMD(svd_rank=energy).fit(path(NOISY, observable).T)
    chosen = settings(observable, rank_rule="energy", energy=energy)
    assert_eigenvalues(products(NOISY), chosen, theirs.eigs)


@pytest.mark.parametrize("shape", [(16, 40), (16, 200), (40, 16), (60, 6)])
@pytest.mark.parametrize("noise", [1e-3, 0.03])
def test_gavish_donoho_rank_is_pydmds(shape: tuple[int, int], noise: float) -> None:
    # Theirs is found on the matrix of weights by pairs, ours on its Gram or on the weights themselves.
    count, size = shape
    ranks = set()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = [0.97, 0.9 * np.exp(0.3j), 0.5][: rng.integers(1, 4)]
        snapshots = dmd_reference.linear_system(values, size, count, seed=seed)
        snapshots = snapshots + noise * rng.standard_normal(shape)
        for observable in ("velocity", "state"):
            theirs = len(DMD(svd_rank=0).fit(path(snapshots, observable).T).eigs)
            chosen = settings(observable, rank_rule="gavish_donoho")
            sources: list[Source] = (
                [vectors(snapshots)] if count > size else [products(snapshots), vectors(snapshots)]
            )
            assert {int(report(source, chosen)[0].rank[0]) for source in sources} == {theirs}
            ranks.add(theirs)
    assert len(ranks) > 1  # it is not always the same


@both_observables
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_ridge_is_pydmds_tikhonov(observable: Observable, ridge: float) -> None:
    inputs = path(NOISY, observable).T[:, :-1]
    largest = np.linalg.norm(inputs, ord=2)  # theirs is given in units of the Frobenius norm: s² + t |X|
    theirs = DMD(
        svd_rank=RANK, tikhonov_regularization=(ridge * largest) ** 2 / np.linalg.norm(inputs), exact=False
    ).fit(path(NOISY, observable).T)
    assert_eigenvalues(products(NOISY), settings(observable, ridge=ridge), theirs.eigs)
    assert_continues(products(NOISY), settings(observable, ridge=ridge), NOISY, theirs.modes, theirs.eigs)


@both_observables
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_total_least_squares_is_pydmds(observable: Observable, rank: int) -> None:
    theirs = DMD(svd_rank=rank, tlsq_rank=rank, exact=False).fit(path(NOISY, observable).T)
    chosen = settings(observable, rank=rank, debias="total_least_squares")
    assert_eigenvalues(products(NOISY), chosen, theirs.eigs)
    assert_continues(products(NOISY), chosen, NOISY, theirs.modes, theirs.eigs)
    plain = DMD(svd_rank=rank).fit(path(NOISY, observable).T)
    assert np.abs(np.sort(np.abs(plain.eigs)) - np.sort(np.abs(theirs.eigs))).max() > 1e-6


@both_observables
def test_forward_backward_is_the_papers(observable: Observable) -> None:
    modes, operator = dmd_reference.forward_backward_operator(path(NOISY, observable), RANK)
    eigenvalues, vectors_in_modes = np.linalg.eig(operator)
    chosen = settings(observable, debias="forward_backward")
    assert_eigenvalues(products(NOISY), chosen, eigenvalues)
    assert_continues(products(NOISY), chosen, NOISY, modes @ vectors_in_modes, eigenvalues)


@both_observables
def test_forward_backward_agrees_with_pydmd_where_it_must(observable: Observable) -> None:
    # PyDMD 2025.8 writes the backward operator in the POD basis of the outputs and multiplies it with the forward one,
    # which stands in that of the inputs. The paper has one basis for both. In one dimension there is only one.
    one = dmd_reference.linear_system([0.9], 40, 16, seed=1, fixed_point=0.0)
    theirs = FbDMD(svd_rank=1).fit(path(one, observable).T)
    chosen = settings(observable, rank=1, debias="forward_backward")
    assert_eigenvalues(products(one), chosen, theirs.eigs)
    # With more, theirs is not exact on exact data; ours is.
    theirs = FbDMD(svd_rank=RANK).fit(path(CLEAN, observable).T)
    true = np.array([0.97, 0.9 * np.exp(0.3j), 0.9 * np.exp(-0.3j)])
    assert np.abs(np.sort_complex(theirs.eigs) - np.sort_complex(true)).max() > 1e-5
    assert_eigenvalues(products(CLEAN), settings(observable, debias="forward_backward"), true, 1e-7)


@both_observables
@pytest.mark.parametrize("delays", [1, 3])
@pytest.mark.parametrize("dual", [True, False])
def test_delays_are_pydmds_hankel(observable: Observable, delays: int, dual: bool) -> None:
    snapshots = NOISY if dual else SHORT
    source = products(snapshots) if dual else vectors(snapshots)
    chosen = settings(observable, delays=delays)
    advanced = path(snapshots, observable)
    theirs = HankelDMD(svd_rank=RANK, d=delays + 1, exact=False).fit(advanced.T)
    assert_eigenvalues(source, chosen, theirs.eigs)
    plain = DMD(svd_rank=RANK, exact=False).fit(dmd_reference.stacked(advanced, delays).T)
    assert_continues(source, chosen, snapshots, plain.modes, plain.eigs)


@both_observables
@pytest.mark.parametrize("forgetting", [0.5, 0.9, 1.0])
def test_forgetting_is_weighted_least_squares(observable: Observable, forgetting: float) -> None:
    operator = dmd_reference.weighted_operator(path(SHORT, observable), forgetting)
    eigenvalues, modes = np.linalg.eig(operator)
    chosen = settings(observable, rank_rule="energy", energy=1.0, forgetting=forgetting)
    for source in (vectors(SHORT), streamed(SHORT, observable=observable, forgetting=forgetting)):
        assert_eigenvalues(source, chosen, eigenvalues)
        assert_continues(source, chosen, SHORT, modes, eigenvalues)


@both_observables
@pytest.mark.parametrize("source", [vectors(SHORT), None], ids=["vectors", "streamed"])
def test_any_horizon_is_scipys_matrix_function(observable: Observable, source: Source | None) -> None:
    chosen = settings(observable, rank_rule="energy", energy=1.0)
    advanced = path(SHORT, observable)
    operator = dmd_reference.weighted_operator(advanced, 1.0)
    source = source or streamed(SHORT, observable=observable)
    horizons = (0.01, 0.5, 2.25, 40.0)
    for offset in (0.0, 0.75, 3.5):
        batch = predict(source, chosen, horizons, offset)
        for index, horizon in enumerate(horizons):
            there, here = (
                dmd_reference.continued(operator, advanced[-1], strides, observable)
                for strides in (offset + horizon, offset)
            )
            found = displacement(batch, SHORT, index)
            assert np.linalg.norm(found - (there - here)) < 1e-9 * np.linalg.norm(there)


@both_observables
def test_stabilize_moves_eigenvalues_radially(observable: Observable) -> None:
    growing = dmd_reference.linear_system([1.05 * np.exp(0.2j), 0.9], 40, 16, seed=1, fixed_point=0.0)
    growing = growing + 0.01 * np.random.default_rng(0).standard_normal(growing.shape)
    theirs = DMD(svd_rank=RANK, exact=False).fit(path(growing, observable).T)
    assert np.abs(theirs.eigs).max() > 1.01
    onto = theirs.eigs / np.maximum(1.0, np.abs(theirs.eigs))
    chosen = settings(observable, stabilize=True)
    assert_continues(products(growing), chosen, growing, theirs.modes, onto)
    assert_eigenvalues(products(growing), chosen, theirs.eigs)  # the report tells what was fitted
