"""What must hold of an answer whatever the window: symmetries, finiteness, independence, additivity."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays

import dmd_reference
from koopcast_server.koopman import OperatorSettings, PredictionBatch, Products, predict, report

moderate = settings(deadline=None, max_examples=60)
operators = st.builds(
    OperatorSettings,
    observable=st.sampled_from(["velocity", "state"]),
    rank_rule=st.sampled_from(["auto", "fixed", "energy"]),
    rank=st.integers(1, 12),
    energy=st.sampled_from([0.9, 0.9999, 1.0]),
    ridge=st.sampled_from([0.0, 1e-4, 0.1]),
    stabilize=st.booleans(),
)
horizons = st.lists(st.floats(0.01, 200.0), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)
TAME = OperatorSettings(rank_rule="fixed", rank=3)


def products(*blocks: dmd_reference.Array) -> Products:
    gram, dots, squared = map(torch.from_numpy, dmd_reference.window_products(*blocks))
    return Products(gram, dots, squared)


def path(seed: int, count: int = 10) -> np.ndarray:
    """Training-like: decaying and turning modes, and a little noise."""
    rng = np.random.default_rng(seed)
    values = [rng.uniform(0.5, 1.0), rng.uniform(0.5, 0.95) * np.exp(1j * rng.uniform(0.1, 1.0))]
    clean = dmd_reference.linear_system(values, 25, count, seed=seed)
    return np.asarray(clean + 1e-3 * rng.standard_normal(clean.shape))


def displacements(batch: PredictionBatch, snapshots: np.ndarray) -> np.ndarray:
    velocities = batch.velocity_coefficients[:, 0].numpy() @ np.diff(snapshots, axis=0)
    return np.asarray(velocities + batch.last_coefficients[:, :1].numpy() * snapshots[-1])


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(np.abs(wanted).max(), 1e-12))


@moderate
@given(seed=seeds, taus=horizons, observable=st.sampled_from(["velocity", "state"]))
def test_order_scale_and_basis_of_the_weights_do_not_matter(
    seed: int, taus: list[float], observable: str
) -> None:
    chosen = OperatorSettings(observable, "fixed", rank=3, ridge=1e-4)  # type: ignore[arg-type]
    snapshots, rng = path(seed), np.random.default_rng(seed)
    wanted = predict(products(snapshots), chosen, taus)
    assume(float((wanted.report.backtest_error - 1).abs()) > 1e-6)
    plain = displacements(wanted, snapshots)
    shuffled = snapshots[:, rng.permutation(25)]
    rotation, _ = np.linalg.qr(rng.standard_normal((25, 25)))
    for other, back in (
        (shuffled, shuffled),
        (snapshots * 3e-40, snapshots * 3e-40),
        (snapshots * -7e30, snapshots * -7e30),
        (snapshots @ rotation, snapshots @ rotation),
    ):
        found = predict(products(other), chosen, taus)
        # the coefficients are the same, so the displacements transform as the weights do
        assert_same(displacements(found, snapshots), plain)
        assert displacements(found, back).shape == plain.shape
        assert found.moved.tolist() == wanted.moved.tolist()


finite = st.one_of(
    st.floats(-1e3, 1e3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, 1e-300, 1e300]),
)


@settings(deadline=None, max_examples=250)
@given(
    snapshots=st.integers(3, 9).flatmap(lambda count: arrays(np.float64, (count, 3), elements=finite)),
    chosen=operators,
    taus=st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=3),
    offset=st.sampled_from([0.0, 0.5, 3.0, 1e9]),
)
def test_every_finite_window_has_a_finite_answer(
    snapshots: np.ndarray, chosen: OperatorSettings, taus: list[float], offset: float
) -> None:
    with np.errstate(all="ignore"):
        batch = predict(products(snapshots), chosen, taus, offset)
    assert batch.velocity_coefficients.isfinite().all()
    assert batch.last_coefficients.isfinite().all()
    still = ~batch.moved
    assert (batch.velocity_coefficients[still] == 0).all()
    assert (batch.last_coefficients[still] == 0).all()
    assert batch.report.rank.shape == (1,)
    assert batch.report.spectral_radius.isfinite().all()


@settings(deadline=None, max_examples=100)
@given(
    blocks=st.lists(
        arrays(np.float64, (6, 3), elements=st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e200]))),
        min_size=1,
        max_size=4,
    ),
    chosen=operators,
    taus=horizons,
)
def test_blocks_are_independent(
    blocks: list[np.ndarray], chosen: OperatorSettings, taus: list[float]
) -> None:
    with np.errstate(all="ignore"):
        together = predict(products(*blocks), chosen, taus)
        for index, block in enumerate(blocks):
            alone = predict(products(block), chosen, taus)
            borderline = float((alone.report.backtest_error - 1).abs()[0]) < 1e-3
            if borderline or float(alone.report.spectral_radius[0]) > 10:
                continue
            assert int(together.report.rank[index]) == int(alone.report.rank[0])
            torch.testing.assert_close(
                together.velocity_coefficients[:, index],
                alone.velocity_coefficients[:, 0],
                rtol=1e-4,
                atol=1e-6,
            )


@moderate
@given(
    seed=seeds,
    first=st.floats(0.0, 50.0),
    steps=st.lists(st.floats(0.01, 50.0), min_size=2, max_size=3),
    observable=st.sampled_from(["velocity", "state"]),
)
def test_displacements_add_up(seed: int, first: float, steps: list[float], observable: str) -> None:
    chosen = OperatorSettings(observable, "fixed", rank=4)  # type: ignore[arg-type]
    window = products(path(seed))
    whole = predict(window, chosen, [sum(steps)], first)
    total, at = torch.zeros_like(whole.velocity_coefficients), first
    for step in steps:
        total += predict(window, chosen, [step], at).velocity_coefficients
        at += step
    torch.testing.assert_close(total, whole.velocity_coefficients, rtol=1e-9, atol=1e-9)


@moderate
@given(seed=seeds, taus=horizons)
def test_many_horizons_are_many_answers(seed: int, taus: list[float]) -> None:
    window = products(path(seed))
    batch = predict(window, TAME, taus, 0.5)
    for index, tau in enumerate(taus):
        one = predict(window, TAME, [tau], 0.5)
        torch.testing.assert_close(batch.velocity_coefficients[index], one.velocity_coefficients[0])


@moderate
@given(seed=seeds, growth=st.floats(1.0, 3.0))
def test_a_stable_operator_does_not_blow_up(seed: int, growth: float) -> None:
    rng = np.random.default_rng(seed)
    snapshots = path(seed) + growth ** np.arange(10)[:, None] * rng.standard_normal(25)
    batch = predict(products(snapshots), TAME, [100.0, 1000.0])
    near, far = np.linalg.norm(displacements(batch, snapshots), axis=1)
    if near > 0:
        assert far < 200 * near + 1e6 * np.abs(snapshots).max()
    assert report(products(snapshots), TAME)[0].spectral_radius.isfinite().all()
