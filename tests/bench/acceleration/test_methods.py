"""Each method does what it says, on problems whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from acceleration.methods import METHODS, Running, Start
from acceleration.methods.weights import Tensors
from koopcast_server.demo.suite.optimizers import make_optimizer, make_scheduler
from koopcast_server.demo.tasks.task import Problem

BUDGET = 400


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Quadratic(nn.Module):
    """½ Σ cᵢ wᵢ²; gradient descent at rate η multiplies wᵢ by 1 - η cᵢ every step."""

    curvatures: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        self.register_buffer("curvatures", torch.tensor([[1.0, 0.1], [0.02, 0.004]]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self) -> Tensor:
        return 0.5 * (self.curvatures * self.weight.square()).sum()


def problem_of(model: Quadratic, *, adapted: bool = False) -> Problem:
    def adapt(model: nn.Module) -> None:
        assert isinstance(model, Quadratic)
        model.seen.copy_(model.weight.detach().sum())

    return Problem(
        model,
        batch_loss=lambda _: model(),
        target_loss=lambda: float(model().detach()),
        probe=model,
        probe_cost_steps=4.0,
        adapt=adapt if adapted else None,
        adapt_cost_steps=2.0 if adapted else 0.0,
    )


class Trained:
    """A method beside gradient descent on the quadratic."""

    def __init__(
        self, method: str, *, optimizer: str = "sgd", rate: float = 0.1, adapted: bool = False
    ) -> None:
        self.model = Quadratic()
        self.problem = problem_of(self.model, adapted=adapted)
        self.optimizer = make_optimizer(optimizer, self.model.parameters(), rate)
        self.scheduler = make_scheduler(self.optimizer, "constant", BUDGET)
        start = Start(self.problem, self.optimizer, self.scheduler, BUDGET)
        self.running: Running = METHODS[method](start)
        self.path = [self.weights()]
        self.spent = 0.0

    def weights(self) -> Tensor:
        return self.model.weight.detach().clone()

    def handed_out(self) -> Tensor:
        before = self.weights()
        with self.running.evaluated():
            given = self.weights()
        assert torch.equal(before, self.weights())
        return given

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.problem.batch_loss(0))
            self.optimizer.step()
            self.scheduler.step()
            self.path.append(self.weights())  # where the optimizer stepped, before the method
            self.spent += self.running.after_step()


def test_plain_does_nothing() -> None:
    trained = Trained("plain")
    trained.step(30)
    factors = (1.0 - 0.1 * trained.model.curvatures) ** 30
    torch.testing.assert_close(trained.handed_out(), trained.path[0] * factors)
    assert (trained.spent, trained.running.facts()) == (0.0, {})


def test_ema_is_warmed_up_and_leaves_training_alone() -> None:
    trained = Trained("ema")
    trained.step(20)
    average = trained.path[0]
    for step in range(1, 21):
        decay = min(0.99, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * trained.path[step]
    torch.testing.assert_close(trained.handed_out(), average)
    torch.testing.assert_close(
        trained.weights(), trained.path[0] * (1.0 - 0.1 * trained.model.curvatures) ** 20
    )


def test_ema_averages_buffers_of_real_numbers() -> None:
    trained = Trained("ema")
    trained.model.seen.fill_(1.0)
    trained.step()
    with trained.running.evaluated():
        assert float(trained.model.seen) == pytest.approx(1 - 2 / 11)
    assert float(trained.model.seen) == 1.0


def test_lawa_is_the_mean_of_five_checkpoints() -> None:
    trained = Trained("lawa")  # a checkpoint every 4 steps
    assert torch.equal(trained.handed_out(), trained.path[0])
    trained.step(30)
    mean = torch.stack([trained.path[step] for step in (12, 16, 20, 24, 28)]).mean(0)
    torch.testing.assert_close(trained.handed_out(), mean)


def test_lookahead_goes_half_way() -> None:
    trained = Trained("lookahead")
    trained.step(5)
    middle = 0.5 * (trained.path[0] + trained.path[5])
    torch.testing.assert_close(trained.weights(), middle)
    trained.step(3)
    torch.testing.assert_close(trained.handed_out(), middle)
    torch.testing.assert_close(trained.weights(), middle * (1 - 0.1 * trained.model.curvatures) ** 3)


def test_snoo_is_a_nesterov_step_of_torchs() -> None:
    trained = Trained("snoo")
    slow = nn.Parameter(trained.path[0].clone())
    outer = torch.optim.SGD([slow], lr=0.8, momentum=0.5, nesterov=True)
    for turn in range(1, 4):
        trained.step(20)
        slow.grad = slow.detach() - trained.path[20 * turn]
        outer.step()
        torch.testing.assert_close(trained.weights(), slow.detach())


@pytest.mark.parametrize("method", ["linear", "linear-mask"])
def test_probed_lines_jump_and_count(method: str) -> None:
    trained, plain = Trained(method, rate=0.05), Trained("plain", rate=0.05)
    trained.step(200)
    plain.step(200)
    facts = trained.running.facts()
    assert facts["jumps"][0][2] in (40, 160, 640, 2560)
    assert facts["jumps"][0][1] == 1
    assert trained.spent == 4.0 * facts["probe_evaluations"]
    assert 100 < facts["jumps"][0][0] <= 100 + 4.0 * facts["probe_evaluations"]
    assert trained.problem.target_loss() < plain.problem.target_loss()


def test_adaptation_is_counted_and_stays() -> None:
    trained = Trained("linear", rate=0.05, adapted=True)
    trained.step(100)
    facts = trained.running.facts()
    assert facts["on_jump_evaluations"] == facts["probe_evaluations"] - 1  # the first probe moves nothing
    assert trained.spent == 4.0 * facts["probe_evaluations"] + 2.0 * facts["on_jump_evaluations"]
    assert float(trained.model.seen) == pytest.approx(float(trained.weights().sum()))


def test_a_jump_that_went_wrong_is_undone() -> None:
    trained = Trained("linear", optimizer="sgd-momentum", rate=0.0005)
    trained.step(100)
    assert trained.running.facts()["jumps"][-1][1] == 1
    trained.step(9)
    with torch.no_grad():
        trained.model.weight.mul_(100.0)
    trained.step()
    facts = trained.running.facts()
    assert (facts["jumps"][-1][1], facts["jumps_undone"]) == (0, 1)
    torch.testing.assert_close(trained.weights(), trained.path[100])


def test_nodes_jump_after_each_window_but_not_to_infinity() -> None:
    trained = Trained("nodes")
    trained.step(100)
    assert [jump[2] for jump in trained.running.facts()["jumps"]] == [50, 50]
    exploding = Trained("nodes", rate=3000.0)  # weights grow to infinity
    exploding.step(50)
    assert exploding.running.facts()["jumps"] == [[50.0, 0, 50]]


def test_pdt_jumps_every_epoch_from_the_sixth_on() -> None:
    trained = Trained("pdt", rate=0.05)  # an epoch: 8 steps
    trained.step(47)
    assert trained.running.facts()["jumps"] == []
    assert torch.equal(trained.weights(), trained.path[47])
    trained.step(17)
    assert [jump[0] for jump in trained.running.facts()["jumps"]] == [48, 56, 64]
    assert 0.0 < trained.running.facts()["kept_share"] <= 1.0


@pytest.mark.parametrize("method", ["ours", "ours-no-probe"])
def test_ours_counts_what_it_spends(method: str) -> None:
    trained = Trained(method, rate=0.05, adapted=True)
    try:
        trained.step(130)
        facts = trained.running.facts()
    finally:
        trained.running.close()
    stats = facts["stats"]
    assert facts["connected_at_start"] is True
    assert stats["steps"] == 130
    assert trained.spent == 4.0 * stats["probe_evaluations"] + 2.0 * stats["on_jump_evaluations"]
    assert all(jump[0] <= 130 + trained.spent for jump in facts["jumps"])
    assert (stats["probe_evaluations"] > 0) == (method == "ours")
    assert len(facts["jumps"]) == stats["jumps_proposed"]


def test_swapped_weights_come_back_bit_for_bit() -> None:
    tensors = Tensors.whole(Quadratic())
    held = tensors.copies()
    with tensors.swapped([one + 1.0 for one in held]):
        assert not torch.equal(tensors.live[0], held[0])
    assert all(map(torch.equal, tensors.live, held))


def test_every_method_is_deterministic_but_ours() -> None:
    for method in METHODS:
        if not method.startswith("ours"):
            runs = [Trained(method) for _ in range(2)]
            for run in runs:
                run.step(120)
            assert torch.equal(*map(Trained.handed_out, runs)), method
