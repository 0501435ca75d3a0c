"""The demo's attack, against models whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from pursamere.demo.attack import margin, pgd

EPS = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear:
    """Two classes, the margin of class 1 being <w, x> + b; it counts the images it sees."""

    def __init__(self, weight: Tensor, bias: float):
        self.weight, self.bias, self.seen = weight, bias, 0

    def score(self, x: Tensor) -> Tensor:
        return (x.flatten(1) * self.weight.flatten()).sum(dim=1) + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), self.score(x)], dim=1)


@pytest.fixture
def problem():
    """A linear model, images (many pixels at the ends of their range) and labels that it mostly gets right."""
    weight = torch.randn(1, 4, 4, generator=generator(1), dtype=torch.float64)
    images = (torch.rand(400, 1, 4, 4, generator=generator(2), dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    model = Linear(weight, -0.5 * float(weight.sum()))
    flipped = torch.rand(400, generator=generator(3)) < 0.1
    labels = (model.score(images) > 0).long() ^ flipped.long()
    return model, images, labels


def optimum(model: Linear, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The worst image in the ball and the box: every pixel at the end that its weight points to."""
    sign = (1 - 2 * labels).double()[:, None, None, None]  # towards class 1 for class 0, and back
    return (images + eps * sign * model.weight.sign()).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.15])
def test_exact_robust_accuracy_of_a_linear_model(problem, eps):
    model, images, labels = problem
    worst = optimum(model, images, labels, eps)
    expected = (model(worst).argmax(1) == labels).double().mean()
    assert 0.1 < expected < 0.9, "the problem is trivial"
    found = pgd(model, images, labels, eps=eps, steps=10, generator=generator())
    assert (model(found).argmax(1) == labels).double().mean() == expected
    found = pgd(model, images, labels, eps=eps, steps=10, generator=generator(), stop_at_success=False)
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-15)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("steps", [1, 7])
def test_ball_and_box_are_respected(problem, stop, steps):
    model, images, labels = problem
    found = pgd(model, images, labels, eps=EPS, steps=steps, generator=generator(), stop_at_success=stop)
    assert (found - images).abs().max() <= EPS + 1e-15
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - images).abs().max() > 0.99 * EPS


def test_the_start_is_uniform_in_the_ball():
    flat = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)

    def constant(x):
        return torch.cat([x.flatten(1).sum(1, keepdim=True) * 0, torch.zeros(len(x), 1, dtype=x.dtype)], dim=1)

    starts = [
        pgd(constant, flat, torch.zeros(2000).long(), eps=EPS, steps=1, generator=generator(s)) for s in (0, 0, 1)
    ]
    torch.testing.assert_close(starts[0], starts[1], rtol=0, atol=0)
    assert (starts[0] != starts[2]).all()
    offset = (starts[0] - 0.5) / EPS
    assert offset.abs().max() <= 1 + 1e-12
    assert abs(float(offset.mean())) < 0.03
    assert abs(float(offset.var()) - 1 / 3) < 0.02


def test_the_last_iterate_is_judged_too():
    """One step from a start that is right: only the image after the step is wrong."""
    images = torch.full((50, 1, 1, 1), 0.5, dtype=torch.float64)
    model = Linear(torch.ones(1, 1, 1, dtype=torch.float64), -0.5 + 0.9 * EPS)  # wrong below 0.5 - 0.9 eps
    labels = torch.ones(50).long()
    found = pgd(model, images, labels, eps=EPS, steps=1, generator=generator())
    start = pgd(Linear(model.weight * 0, 1.0), images, labels, eps=EPS, steps=1, generator=generator())
    reachable = start.flatten() - EPS / 2 <= 0.5 - 0.9 * EPS
    assert 5 < reachable.sum() < 45
    assert torch.equal(model(found).argmax(1) != labels, reachable)


def test_the_best_iterate_is_returned_and_not_the_last():
    """A model that answers differently from one call to the next: the margins of the calls are given."""
    images = torch.full((1, 1, 1, 1), 0.5)
    calls: list[Tensor] = []

    def model(x):
        calls.append(x.detach().clone())
        value = (3.0, 1.0, 2.0, 4.0)[len(calls) - 1]
        return torch.stack([x.flatten() * 0 + value + x.flatten() - x.flatten().detach(), x.flatten() * 0], dim=1)

    found = pgd(model, images, torch.zeros(1).long(), eps=EPS, steps=3, generator=generator())
    assert len(calls) == 4
    assert torch.equal(found, calls[1])
    assert not torch.equal(calls[1], calls[3])


def test_stopping_at_success_saves_work_and_changes_no_outcome(problem):
    model, images, labels = problem
    outcomes, seen = [], []
    for stop in (True, False):
        model.seen = 0
        found = pgd(model, images, labels, eps=EPS, steps=10, generator=generator(), stop_at_success=stop)
        seen.append(model.seen)
        outcomes.append(model(found).argmax(1) == labels)
    assert torch.equal(*outcomes)
    assert seen[1] == 11 * len(images)
    assert seen[0] < 0.8 * seen[1]


@pytest.mark.parametrize("labels", [0, 1])
def test_progress_sums_up_to_the_steps(labels):
    images = torch.full((5, 1, 1, 1), 0.5)
    model = Linear(torch.ones(1, 1, 1), 0.5)  # always class 1: class 0 falls at once
    done: list[int] = []
    pgd(model, images, torch.full((5,), labels), eps=EPS, steps=6, generator=generator(), progress=done.append)
    assert sum(done) == 6


def test_margin():
    logits = torch.tensor([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5], [0.0, -math.inf, 5.0]])
    torch.testing.assert_close(margin(logits, torch.tensor([1, 2, 2])), torch.tensor([0.5, -0.5, 5.0]))


def test_global_state_is_left_alone(problem):
    model, images, labels = problem
    before = torch.get_rng_state()
    with torch.no_grad():  # the caller's mode does not matter and is kept
        pgd(model, images, labels, eps=EPS, steps=3, generator=generator())
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
