"""What must hold of every method, whatever the weights: symmetries, exactness, additivity, finiteness, independence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays

import dmd_reference
from dmd_reference import Array
from koopcast_server.koopman import Observable, OperatorSettings, Products, Source, predict, report
from sources import displacement, products, streamed, vectors

quick = settings(deadline=None, max_examples=12)
seeds = st.integers(0, 10_000)
both_observables = st.sampled_from(["velocity", "state"])
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "energy": {"rank_rule": "energy", "energy": 0.999},
    "gavish donoho": {"rank_rule": "gavish_donoho"},
    "ridge": {"ridge": 0.1},
    "free": {"stabilize": False},
    "total least squares": {"debias": "total_least_squares"},
    "forward backward": {"debias": "forward_backward"},
    "delays": {"delays": 2},
    "forgetting": {"forgetting": 0.7},
    "bound": {"max_jump": 0.2},
}
every_method = pytest.mark.parametrize("method", METHODS)
everything = st.builds(
    OperatorSettings,
    observable=both_observables,
    rank_rule=st.sampled_from(["auto", "fixed", "energy", "gavish_donoho", "backtest"]),
    rank=st.integers(1, 12),
    energy=st.sampled_from([0.9, 0.9999, 1.0]),
    ridge=st.sampled_from([0.0, 1e-6, 0.1, None]),
    stabilize=st.booleans(),
    debias=st.sampled_from(["none", "total_least_squares", "forward_backward", None]),
    delays=st.sampled_from([0, 0, 1, 3]),
    forgetting=st.sampled_from([1.0, 0.9, 1e-3]),
    max_jump=st.sampled_from([None, 1e-3, 1.0, 1e9]),
    always_move=st.booleans(),
)
EXTREME = [0.0, 1.0, -1.0, 1e-300, 5e-324, 1e150, -1e300, 1e308]
finite = st.one_of(
    st.floats(-1e3, 1e3), st.sampled_from(EXTREME), st.floats(allow_nan=False, allow_infinity=False)
)


def of(method: str, observable: Observable, **others: Any) -> OperatorSettings:
    plain = {"rank_rule": "fixed", "rank": 3, "ridge": 1e-6, "always_move": True}
    return OperatorSettings(observable, **{**plain, **METHODS[method], **others})


def training(seed: int, count: int = 12, size: int = 25, noise: float = 1e-3) -> Array:
    """Decaying and turning modes, and a little noise."""
    rng = np.random.default_rng(seed)
    values = [rng.uniform(0.6, 0.98), rng.uniform(0.6, 0.95) * np.exp(1j * rng.uniform(0.3, 1.0))]
    clean = dmd_reference.linear_system(values, size, count, seed=seed)
    return np.asarray(clean + noise * rng.standard_normal(clean.shape))


def answers(source: Source, chosen: OperatorSettings, snapshots: Array) -> Array:
    batch = predict(source, chosen, [1.0, 6.5])
    return np.stack([displacement(batch, snapshots, index) for index in range(2)])


def assert_same(found: Array, wanted: Array, digits: float = 1e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=digits * max(float(np.abs(wanted).max()), 1e-300))


@every_method
@pytest.mark.parametrize("form", [products, vectors])
@quick
@given(seed=seeds, observable=both_observables)
def test_order_scale_and_basis_of_the_weights_do_not_matter(
    method: str, form: Any, seed: int, observable: Observable
) -> None:
    chosen, snapshots, rng = of(method, observable), training(seed), np.random.default_rng(seed)
    told = report(products(snapshots), chosen)[0]
    assume(float(told.spectral_radius[0]) < 3 or chosen.stabilize)
    plain = answers(form(snapshots), chosen, snapshots)
    order = rng.permutation(25)
    rotation = np.linalg.qr(rng.standard_normal((25, 25)))[0]
    assert_same(answers(form(snapshots[:, order]), chosen, snapshots[:, order]), plain[:, order])
    assert_same(answers(form(snapshots @ rotation), chosen, snapshots @ rotation), plain @ rotation)
    for scale in (3e-40, -7e30):
        assert_same(answers(form(snapshots * scale), chosen, snapshots * scale) / scale, plain)


@every_method
@quick
@given(seed=seeds)
def test_a_common_part_does_not_matter_to_velocities(method: str, seed: int) -> None:
    chosen, snapshots = of(method, "velocity"), training(seed)
    moved = snapshots + np.random.default_rng(seed).standard_normal(25)
    assert_same(
        answers(products(moved), chosen, moved), answers(products(snapshots), chosen, snapshots), 1e-5
    )


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ridge", "gavish donoho", "energy", "bound"}))
@quick
@given(seed=seeds, observable=both_observables)
def test_linear_systems_are_continued_exactly(method: str, seed: int, observable: Observable) -> None:
    # the methods that must not touch what is exact: not those that shrink, truncate or bound
    rng = np.random.default_rng(seed)
    values = [rng.uniform(0.85, 0.98), rng.uniform(0.8, 0.95) * np.exp(1j * rng.uniform(0.4, 1.2))]
    path = dmd_reference.linear_system(values, 20, 40, seed=seed)
    chosen = of(method, observable, rank=4, ridge=0.0)
    known, true = path[:12], path[31] - path[11]
    for told in (products(known), vectors(known)):
        found = displacement(predict(told, chosen, [20]), known)
        assert np.linalg.norm(found - true) < 1e-4 * np.linalg.norm(true)


@every_method
@quick
@given(seed=seeds, observable=both_observables, cuts=st.lists(st.integers(1, 24), min_size=1, max_size=4))
def test_shards_summed_are_the_whole(method: str, seed: int, observable: Observable, cuts: list[int]) -> None:
    chosen, snapshots = of(method, observable), training(seed)
    shards = [dmd_reference.window_products(part) for part in np.split(snapshots, sorted(cuts), axis=1)]
    gram, dots, squared = (torch.from_numpy(np.sum(several, axis=0)) for several in zip(*shards, strict=True))
    summed = Products(gram, dots, squared, elements=torch.tensor([25.0]).double())
    whole = answers(products(snapshots), chosen, snapshots)
    assert_same(answers(summed, chosen, snapshots), whole, 1e-5)


@settings(deadline=None, max_examples=120)
@given(
    snapshots=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 4)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=finite)
    ),
    chosen=everything,
    form=st.sampled_from(["gram", "vectors", "streamed"]),
    offset=st.sampled_from([0.0, 0.5, 1e9]),
)
def test_every_finite_window_has_a_finite_answer(
    snapshots: Array, chosen: OperatorSettings, form: str, offset: float
) -> None:
    if form == "streamed":
        chosen = replace(chosen, delays=0)
    assume(snapshots.shape[1] >= chosen.minimum_snapshots)
    told: Source
    with np.errstate(all="ignore"):
        if form == "streamed":
            told = streamed(*snapshots, observable=chosen.observable)
        else:
            told = products(*snapshots) if form == "gram" else vectors(*snapshots)
    batch = predict(told, chosen, [0.3, 5.0, 1e7], offset)
    for numbers in (batch.velocity_coefficients, batch.last_coefficients, batch.displacement):
        if numbers is not None and numbers.numel():
            assert numbers.isfinite().all()
            assert (numbers[~batch.moved] == 0).all()
    found, modes = report(told, chosen, 2.0)
    assert found.spectral_radius.isfinite().all()
    assert not (found.predicted_error < 0).any()
    assert (modes.eigenvalues.isnan().sum(-1) == modes.eigenvalues.shape[1] - found.rank).all()


@every_method
@quick
@given(several=st.lists(seeds, min_size=2, max_size=4), observable=both_observables)
def test_blocks_are_independent(method: str, several: list[int], observable: Observable) -> None:
    chosen, blocks = of(method, observable), [training(seed) for seed in several]
    together = predict(products(*blocks), chosen, [4.0])
    for index, block in enumerate(blocks):
        alone = predict(products(block), chosen, [4.0])
        assert int(together.report.rank[index]) == int(alone.report.rank[0])
        assert_same(displacement(together, block, block=index), displacement(alone, block))


@settings(deadline=None, max_examples=5)
@given(seed=seeds, observable=both_observables, strides=st.integers(1, 4), first=st.integers(0, 10))
def test_no_candidate_alone_is_better_than_the_chosen_one(
    seed: int, observable: Observable, strides: int, first: int
) -> None:
    told = products(*(training(seed + block, count=13, noise=0.05) for block in range(3)))
    chosen = OperatorSettings(observable, "backtest", ridge=None, debias=None, always_move=True)
    best = predict(told, chosen, [float(strides)]).report
    corrected = torch.tensor([name != "none" for name in best.debias_names()])
    errors = best.backtest_errors[:, strides - 1]
    tried = chosen.candidates(7 if observable == "velocity" else 8)  # pairs of the shorter fold
    assert len(tried) > 50
    for candidate in tried[first::11]:  # one at a time, without the others beside it
        single = replace(
            chosen,
            rank_rule=candidate.rank_rule,
            rank=candidate.rank,
            ridge=candidate.ridge,
            debias=candidate.debias,
        )
        alone = predict(told, single, [float(strides)]).report.backtest_errors[:, strides - 1]
        handicap = (
            1.5 if candidate.debias != "none" else 1.0
        )  # corrections for noise have one (`least_error`)
        assert (torch.where(corrected, 1.5, 1.0) * errors <= handicap * alone * (1 + 1e-5) + 1e-7).all()
