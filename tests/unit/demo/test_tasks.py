"""The suite's tasks: every one trains, repeats, and keeps its evaluations to itself; the physics is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from koopcast_server.demo import DemoError
from koopcast_server.demo.tasks import TASKS, DataMissing, Problem, hamiltonian, images, pinn
from koopcast_server.demo.tasks.batches import Batches
from koopcast_server.demo.tasks.data import (
    BIBLE_VARIABLE,
    DIAMONDS_VARIABLE,
    load_bible,
    load_diamonds,
    load_photograph,
)

NAMES = tuple(TASKS)


def make(name: str, seed: int = 0) -> Problem:
    try:
        return TASKS[name].make(seed)
    except DemoError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def short_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PRETRAINING_STEPS", 20)


def gradients(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_deterministic_tasks_come_first() -> None:
    kinds = [task.kind for task in TASKS.values()]
    assert kinds == ["deterministic"] * 7 + ["stochastic"] * 5
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_probe_and_the_target(name: str) -> None:
    problem = make(name)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=3e-3)
    probe, target = float(problem.probe().detach()), problem.target_loss()
    for step in range(12):
        optimizer.zero_grad()
        gradients(problem.batch_loss(step))
        optimizer.step()
    if problem.adapt is not None:
        problem.adapt(problem.model)
    assert float(problem.probe().detach()) < probe
    assert problem.target_loss() < target


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_weights_and_batches_and_nothing_else(name: str) -> None:
    torch.manual_seed(1)
    one = make(name)
    torch.manual_seed(2)
    random = torch.get_rng_state()
    same_seed, other_seed = make(name), make(name, seed=1)
    assert torch.equal(random, torch.get_rng_state())
    assert same(state(one.model), state(same_seed.model))
    assert not same(state(one.model), state(other_seed.model))
    for step in (5, 0):
        assert torch.equal(one.batch_loss(step), same_seed.batch_loss(step))
    other_seed.model.load_state_dict(one.model.state_dict())
    assert one.target_loss() == other_seed.target_loss()
    assert torch.equal(one.probe(), other_seed.probe())
    repeats = torch.equal(one.batch_loss(0), other_seed.batch_loss(0))
    assert repeats == (TASKS[name].kind == "deterministic")


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_leave_no_trace(name: str) -> None:
    problem = make(name)
    gradients(problem.batch_loss(0))
    kept, random = state(problem.model), torch.get_rng_state()
    parameters = list(problem.model.parameters())
    slopes = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(slopes) == len(parameters)
    copies = [slope.clone() for slope in slopes]
    for _ in range(2):
        assert problem.target_loss() == problem.target_loss()
        assert torch.equal(problem.probe(), problem.probe())
    assert same(kept, state(problem.model))
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in problem.model.modules())
    for parameter, slope, copy in zip(parameters, slopes, copies, strict=True):
        assert parameter.grad is slope
        assert torch.equal(copy, slope)


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_told_in_steps(name: str) -> None:
    problem = make(name)
    stochastic = TASKS[name].kind == "stochastic"
    assert problem.probe_cost_steps == (4.0 if stochastic else 1.0)
    assert (problem.adapt is None) == (name != "fashion-cnn")
    assert problem.adapt_cost_steps == (4.0 if name == "fashion-cnn" else 0.0)


def test_fine_tuning_starts_from_one_body_and_new_heads() -> None:
    one, other = (make("fine-tuning", seed).model.state_dict() for seed in (0, 1))
    equal = {name for name in one if torch.equal(one[name], other[name])}
    assert equal == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_batches_go_through_everything_once_an_epoch() -> None:
    batches = Batches(samples=10, batch=3, seed=4)
    epochs = [[batches.indices(3 * epoch + i).tolist() for i in range(3)] for epoch in range(2)]
    for epoch in epochs:
        assert len({sample for batch in epoch for sample in batch}) == 9
    assert epochs[0] != epochs[1]
    assert batches.indices(1).tolist() == epochs[0][1]
    assert Batches(samples=10, batch=3, seed=5).indices(0).tolist() != epochs[0][0]


def hamilton(energy: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """(∂H/∂p, −∂H/∂q) by autograd."""
    states = states.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(states).sum(), states)
    half = states.shape[1] // 2
    return torch.cat((gradient[:, half:], -gradient[:, :half]), dim=1)


def test_the_true_fields_are_hamiltonian() -> None:
    def oscillator(z: Tensor) -> Tensor:
        return z[:, 1] ** 2 / 2 + z[:, 0] ** 2 / 2 + z[:, 0] ** 4 / 4

    def henon_heiles(z: Tensor) -> Tensor:
        return z.square().sum(dim=1) / 2 + z[:, 0] ** 2 * z[:, 1] - z[:, 1] ** 3 / 3

    states, rates = hamiltonian._oscillator(50, 0)
    torch.testing.assert_close(hamilton(oscillator, states), rates)
    states, rates = hamiltonian._henon_heiles(50, 0)
    assert len(states) == 50
    torch.testing.assert_close(hamilton(henon_heiles, states), rates)
    assert (henon_heiles(states) < 1 / 6).all()


def test_the_networks_field_is_hamiltonian() -> None:
    model = hamiltonian.HamiltonianNetwork(degrees=2, width=8)

    def energy(z: Tensor) -> Tensor:
        energy: Tensor = model.energy(torch.tanh(model.second(torch.tanh(model.first(z)))))
        return energy

    states = torch.randn(20, 4)
    torch.testing.assert_close(hamilton(energy, states), model(states))


def derivatives(field: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (n,), gradient (n, 2) and Hessian (n, 2, 2) by autograd."""

    def at(point: Tensor) -> Tensor:
        return field(point[None])[0]

    gradient = torch.func.vmap(torch.func.jacrev(at))(points)
    hessian = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(at)))(points)
    return field(points), gradient, hessian


@pytest.mark.parametrize("curvature", [(0.0, 1.0), (1.0, 1.0)])
def test_a_jet_is_what_autograd_finds(curvature: tuple[float, float]) -> None:
    model, points = pinn.FieldNetwork(6).double(), torch.randn(20, 2, dtype=torch.float64)
    value, gradient, hessian = derivatives(model, points)
    bent = (hessian.diagonal(dim1=1, dim2=2) * torch.tensor(curvature)).sum(dim=1)
    torch.testing.assert_close(model.jet(points, curvature), torch.stack((value, *gradient.T, bent)))


def test_burgers_residual_is_what_autograd_finds() -> None:
    model = pinn.FieldNetwork(6)

    def u(points: Tensor) -> Tensor:
        t, x = points.unbind(dim=1)
        built_in: Tensor = -torch.sin(math.pi * x) + t * (1 - x**2) * model(points)
        return built_in

    value, gradient, hessian = derivatives(u, pinn._burgers_points(1)[0])
    residual = gradient[:, 0] + value * gradient[:, 1] - 0.01 / math.pi * hessian[:, 1, 1]
    torch.testing.assert_close(pinn._burgers_loss(model, 1), residual.square().mean())


def test_the_helmholtz_solution_leaves_no_residual() -> None:
    def network(points: Tensor) -> Tensor:
        x, y = points.unbind(dim=1)
        return torch.sin(math.pi * x) * torch.sin(2 * math.pi * y) / ((1 - x**2) * (1 - y**2))

    class Exact(pinn.FieldNetwork):
        def jet(self, points: Tensor, curvature: tuple[float, float]) -> Tensor:
            value, gradient, hessian = derivatives(network, points.double())
            laplacian = hessian.diagonal(dim1=1, dim2=2).sum(dim=1)
            return torch.stack((value, *gradient.T, laplacian))

    assert float(pinn._helmholtz_loss(Exact(2), 1)) < 1e-9


def test_missing_data_name_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIAMONDS_VARIABLE, str(tmp_path / "none.csv"))
    with pytest.raises(DataMissing, match="pip install --no-deps plotnine"):
        load_diamonds()
    (tmp_path / "none.csv").write_text("carat,price\n1,2\n")
    with pytest.raises(DataMissing, match="not the diamonds table"):
        load_diamonds()
    monkeypatch.delenv(DIAMONDS_VARIABLE)
    monkeypatch.setattr("koopcast_server.demo.tasks.data.find_spec", lambda name: None)
    with pytest.raises(DataMissing, match="pip install --no-deps plotnine"):
        load_diamonds()
    monkeypatch.delenv(BIBLE_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataMissing, match="apt-get install bible-kjv bible-kjv-text"):
        load_bible()
    monkeypatch.setenv(BIBLE_VARIABLE, str(tmp_path / "none.txt"))
    with pytest.raises(DataMissing, match="no text file"):
        load_bible()


def test_data_come_from_files_that_variables_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("abba\n")
    monkeypatch.setenv(BIBLE_VARIABLE, str(tmp_path / "text"))
    text, alphabet = load_bible()
    assert (text.tolist(), alphabet) == ([1, 2, 2, 1, 0], "\nab")
    header = "carat,cut,color,clarity,depth,table,price,x,y,z"
    rows = ("0.2,Ideal,E,SI2,61,55,326,3.9,4.0,2.4", "0.3,Fair,J,IF,62,60,400,4.1,4.3,2.5")
    (tmp_path / "stones.csv").write_text("\n".join((header, *rows)) + "\n")
    monkeypatch.setenv(DIAMONDS_VARIABLE, str(tmp_path / "stones.csv"))
    measures, prices = load_diamonds()
    assert measures.shape == (2, 9)
    torch.testing.assert_close(measures.abs(), torch.ones(2, 9))
    assert sorted(prices.tolist()) == pytest.approx([-1.0, 1.0])


def test_the_photograph_is_square_and_has_contrast() -> None:
    photograph = load_photograph(32)
    assert photograph.shape == (32, 32)
    assert float(photograph.std()) > 0.1
    assert float(photograph.min()) >= 0.0
    assert float(photograph.max()) <= 1.0
