"""Every operator a user can ask for, through a real service: what it foretells of weights whose future is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import koopcast

SHAPES: dict[str, tuple[int, ...]] = {
    "fc1.weight": (20, 11),
    "fc1.bias": (20,),
    "conv.weight": (4, 2, 3, 3),
    "conv.bias": (4,),
    "scale": (),
}
STRIDE = 5
DECAYS = (0.97, 0.9)
Weights = dict[str, npt.NDArray[np.floating[Any]]]


class Trajectory:
    """Two decaying modes around a fixed point: blocks of two weights or more can tell them apart."""

    def __init__(self, dtype: type[np.floating[Any]] = np.float64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.dtype = dtype
        self.fixed = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
        self.modes = [{name: random.standard_normal(shape) for name, shape in SHAPES.items()} for _ in DECAYS]

    def at(self, index: float) -> Weights:
        """The weights `index` strides after the first."""
        return {
            name: np.asarray(
                fixed + sum(d**index * mode[name] for d, mode in zip(DECAYS, self.modes, strict=True)),
                self.dtype,
            )
            for name, fixed in self.fixed.items()
        }

    def error(self, prediction: koopcast.Prediction, index: int) -> float:
        """|predicted - true| / |true| of a displacement from `index` on, the scalar left out."""
        names = [name for name in SHAPES if name != "scale"]
        begin, end = self.at(index), self.at(index + prediction.steps / STRIDE)
        true = np.concatenate([(end[name] - begin[name]).ravel() for name in names])
        found = np.concatenate([np.asarray(prediction.displacement[name]).ravel() for name in names])
        return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def pushed(
    client: koopcast.Client, name: str, weights: Trajectory, count: int, **settings: Any
) -> koopcast.Job:
    job = client.open_job(name, weights.at(0), stride=STRIDE, operator=koopcast.Operator(**settings))
    for index in range(count):
        job.push(STRIDE * index, weights.at(index))
    return job


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({}, 1),
        ({"partition": "tensor"}, 5),
        ({"partition": "node"}, 20 + 4 + 1),
        ({"partition": "quasi_node", "quasi_node_inputs": 4}, 20 * 3 + 4 * 5 + 1),
        (
            {"partition": "node", "window": 40},
            25,
        ),  # units shorter than the window: their vectors are the coordinates
        ({"partition": "node", "window": "segment"}, 25),
        ({"partition": "tensor", "window": "segment", "forgetting": 0.9}, 5),
        ({"observable": "state"}, 1),
        ({"observable": "state", "partition": "node", "window": "segment"}, 25),
        ({"rank": "backtest", "ridge": "backtest", "debias": "backtest"}, 1),
        ({"rank": "gavish-donoho"}, 1),
        ({"delays": 2}, 1),
        ({"forgetting": 0.8}, 1),
        ({"debias": "total-least-squares"}, 1),
        ({"debias": "forward-backward"}, 1),
    ],
    ids=str,
)
def test_linear_training_is_foretold(
    client: koopcast.Client, job_name: str, settings: dict[str, Any], blocks: int
) -> None:
    weights, count = Trajectory(), 40
    with pushed(client, job_name, weights, count, **settings) as job:
        near, far = job.predict_ahead([STRIDE, 20 * STRIDE])
        assert weights.error(near, count - 1) < 1e-4
        assert weights.error(far, count - 1) < 1e-3
        assert near.summary.blocks == blocks
        assert near.summary.moved >= blocks - 1  # the scalar has one eigenvalue for two modes
        assert near.predicted_error < 0.01
        assert len(near.blocks) == blocks
        status = job.status()
        assert len(status.blocks) == blocks
        assert status.summary is not None
        assert [point.step for point in status.history] == [STRIDE * (count - 1)]


def test_single_weights_have_one_eigenvalue_each(client: koopcast.Client, job_name: str) -> None:
    weights, count = Trajectory(), 40
    with pushed(client, job_name, weights, count, partition="weight") as job:
        prediction = job.predict_ahead(STRIDE, max_blocks=10)
        assert prediction.summary.blocks == sum(int(np.prod(shape)) for shape in SHAPES.values())
        assert [block.name for block in prediction.blocks[:2]] == ["fc1.weight[0]", "fc1.weight[1]"]
        assert len(prediction.blocks) == 10
        assert weights.error(prediction, count - 1) < 0.1
        page = job.status(first_block=5, max_blocks=3)
        assert [block.name for block in page.blocks] == [f"fc1.weight[{index}]" for index in (5, 6, 7)]
        assert all(len(block.modes) == block.rank == 1 for block in page.blocks)


def test_the_preset_is_the_papers_formula(client: koopcast.Client, job_name: str) -> None:
    """U = F' pinv(F) of each node's weights, to the power T, applied to the last of them (NeurIPS 2020, section 3)."""
    random = np.random.default_rng(3)
    spread = 0.02 * random.standard_normal((300, 20, 12))
    path = [np.float64(1.0) + np.cumsum(spread, axis=0) * 0.1][
        0
    ] + spread  # every direction of a node is excited
    operator = koopcast.Operator.preset("dogra-redman")
    layout = {"fc.weight": path[0][:, :11], "fc.bias": path[0][:, 11]}
    with client.open_job(job_name, layout, stride=1, operator=operator) as job:
        for step, weights in enumerate(path):
            job.push(step, {"fc.weight": weights[:, :11], "fc.bias": weights[:, 11]})
        prediction = job.predict_ahead(7)
    assert prediction.summary.moved == prediction.summary.blocks == 20
    for unit in range(20):
        columns = path[:, unit].T
        operator_matrix = columns[:, 1:] @ np.linalg.pinv(columns[:, :-1])
        wanted = np.linalg.matrix_power(operator_matrix, 7) @ columns[:, -1] - columns[:, -1]
        found = np.append(
            prediction.displacement["fc.weight"][unit], prediction.displacement["fc.bias"][unit]
        )
        assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_a_schedule_is_undone_by_its_clock(client: koopcast.Client, job_name: str) -> None:
    """Gradient descent on a quadratic under a decaying rate: autonomous on the clock of summed rates, not in steps."""
    random = np.random.default_rng(0)
    curvature = np.array([1.0, 0.5, 0.2, 0.05])
    directions = random.standard_normal((4, 60))
    rates = 0.1 * (1.0 - np.arange(2001) / 2000)
    clock = np.concatenate([[0.0], np.cumsum(rates)])

    def at(step: int) -> Weights:
        decay = np.array([np.prod(1.0 - rates[:step] * one) for one in curvature])
        return {"w": decay @ directions}

    with client.open_job(job_name, at(0), stride=25) as job:
        for index in range(12):
            step = 400 + 25 * index
            job.push(step, at(step), clock=clock[step])
        last = 400 + 25 * 11
        true = at(last + 400)["w"] - at(last)["w"]
        in_steps = job.predict_ahead(400)
        on_clock = job.predict_ahead(400, clock_intervals=[clock[last + 400] - clock[last]])
    errors = [
        np.linalg.norm(one.displacement["w"] - true) / np.linalg.norm(true) for one in (in_steps, on_clock)
    ]
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 30


def test_trust_grows_with_accepted_jumps_and_shrinks_with_rejected_ones(
    client: koopcast.Client, job_name: str
) -> None:
    with pushed(client, job_name, Trajectory(), 12) as job:
        first = job.predict_ahead()
        assert first.steps == job.status().trusted_horizon_steps
        job.report(first, accepted=True)
        second = job.predict_ahead()
        assert second.steps > first.steps
        job.report(second, accepted=False)
        assert job.status().trusted_horizon_steps < second.steps


def test_the_trust_region_and_the_mask_hold_displacements_back(
    client: koopcast.Client, job_name: str
) -> None:
    weights = Trajectory()
    with pushed(client, f"{job_name}-free", weights, 12) as job:
        free = job.predict_ahead(100 * STRIDE)
    with pushed(client, f"{job_name}-bound", weights, 12, max_jump=0.1) as job:
        bound = job.predict_ahead(100 * STRIDE)
    with pushed(client, f"{job_name}-mask", weights, 12, mask_tolerance=0.0) as job:
        masked = job.predict_ahead(2 * STRIDE)
    scale = bound.blocks[0].jump_scale
    assert 0.0 < scale < 1.0
    for name in SHAPES:
        np.testing.assert_allclose(bound.displacement[name], scale * free.displacement[name], rtol=1e-9)
    last = {name: weights.at(11)[name] - weights.at(10)[name] for name in SHAPES}
    kept = {name: masked.displacement[name] != 0 for name in SHAPES}
    assert 0 < sum(int(one.sum()) for one in kept.values()) < sum(one.size for one in kept.values())
    for name in SHAPES:
        moved, change = masked.displacement[name][kept[name]], last[name][kept[name]]
        assert (np.sign(moved) == np.sign(change)).all()
        assert (np.abs(moved) <= 2.0 * np.abs(change) * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": "segment"}, "at most 2048 parameters"),
        ({"partition": "weight", "window": 1024, "observable": "state"}, None),
        ({"partition": "tensor", "window": 1024}, None),
    ],
    ids=str,
)
def test_what_no_service_should_solve_is_refused_when_the_job_opens(
    client: koopcast.Client, job_name: str, settings: dict[str, Any], words: str | None
) -> None:
    specs = {"w": koopcast.TensorSpec("float32", (50, 60))}
    operator = koopcast.Operator(**settings)
    if words is None:
        client.open_job(job_name, specs, stride=1, operator=operator).close()
        return
    with pytest.raises(koopcast.InvalidArgument, match=words):
        client.open_job(job_name, specs, stride=1, operator=operator)


def test_units_are_told_by_the_spec(client: koopcast.Client, job_name: str) -> None:
    specs = {
        "kernel": koopcast.TensorSpec("float32", (6, 4, 3), node_axis=1),
        "offset": koopcast.TensorSpec("float32", (4,), node_of="kernel"),
    }
    with client.open_job(job_name, specs, stride=1, operator=koopcast.Operator(partition="node")) as job:
        for step in range(6):
            random = np.random.default_rng(step)
            job.push(
                step,
                {
                    "kernel": random.standard_normal((6, 4, 3)).astype(np.float32),
                    "offset": random.standard_normal(4).astype(np.float32),
                },
            )
        blocks = job.predict_ahead(1).blocks
    assert [(block.name, block.parameters) for block in blocks] == [(f"kernel[{i}]", 19) for i in range(4)]
    wrong = {
        "w": koopcast.TensorSpec("float32", (3, 4)),
        "b": koopcast.TensorSpec("float32", (5,), node_of="w"),
    }
    with pytest.raises(koopcast.InvalidArgument, match="b"):
        client.open_job(f"{job_name}-wrong", wrong, stride=1)
