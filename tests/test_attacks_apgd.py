"""APGD, and the targeted loss that it shares with PGD, against models whose answer is known."""

import pytest
import torch
from attacks_case import Linear, TwoOfThree, generator, make_problem
from torch import Tensor

from pursamere.attacks import apgd, margin, pgd
from pursamere.attacks.losses import FEWEST_CLASSES, likeliest_wrong_class, targeted_difference_of_logits_ratio

EPS = 0.1


@pytest.fixture
def problem():
    return make_problem()


def length(offset: Tensor, norm: str) -> Tensor:
    flat = offset.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", FEWEST_CLASSES)
def test_apgd_reaches_the_exact_robust_accuracy(problem, loss, norm):
    _, images, labels = problem
    model = Linear() if loss == "targeted_dlr" else TwoOfThree()
    labels = model(images).argmax(1)
    eps = 0.02 if norm == "linf" else 0.06
    expected = model.is_robust(images, labels, eps, norm)
    assert 0.2 < expected.float().mean() < 0.8, "the problem is trivial"
    restarts = 4 if loss == "targeted_dlr" else 2
    found = apgd(model, images, labels, eps=eps, steps=40, norm=norm, loss=loss, restarts=restarts)
    assert float(length(found - images, norm).max()) <= eps * (1 + 1e-5)
    robust = model(found).argmax(1) == labels
    assert bool((robust >= expected).all()), "an attack cannot do better than the optimum"
    assert torch.equal(robust, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_pgd_reaches_the_exact_robust_accuracy(problem, norm):
    model, images, labels = problem
    eps = 0.02 if norm == "linf" else 0.06
    found = pgd(model, images, labels, eps=eps, steps=40, norm=norm, loss="targeted_dlr", restarts=4)
    assert torch.equal(model(found).argmax(1) == labels, model.is_robust(images, labels, eps, norm))


def test_apgd_ascends_its_own_loss():
    """One sample whose nearest class is another than the one that the cross-entropy would rise fastest for."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0, 0.5]])
    labels, targets = torch.tensor([0]), torch.tensor([2])
    value = targeted_difference_of_logits_ratio(logits, labels, targets)
    torch.testing.assert_close(value, torch.tensor([(0.0 - 3.0) / (3.0 - 0.5 * (0.5 + 0.0))]))
    assert [int(likeliest_wrong_class(logits, labels, rank)) for rank in range(5)] == [1, 4, 2, 3, 1]


def test_apgd_leaves_fallen_samples_alone_and_restarts_help(problem):
    model, images, labels = problem
    seen, outcomes = [], []
    for stop in (True, False):
        model.seen = 0
        found = apgd(model, images, labels, eps=0.02, steps=20, stop_at_success=stop)
        seen.append(model.seen)
        outcomes.append(model(found).argmax(1) == labels)
    assert torch.equal(*outcomes)
    assert seen[1] == len(images) * 22  # the images as they are, the start, and 20 steps
    assert seen[0] < 0.8 * seen[1]

    def bumpy(x):
        logits = model(x)
        return logits + 2 * (9 * x.flatten(1)).sin()[:, :5]

    labels = bumpy(images).argmax(1)
    margins = [
        margin(bumpy(apgd(bumpy, images, labels, eps=EPS, steps=5, restarts=r, stop_at_success=False)), labels)
        for r in (1, 4)
    ]
    assert bool((margins[1] <= margins[0]).all())
    assert bool((margins[1] < margins[0]).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_on_float64_images_sees_the_whole_gradient(norm):
    """The package's float32 images may lie outside the ball by a rounding error; that must not hide their gradient."""
    model = Linear().double()
    images = (0.5 + 0.3 * (torch.rand(50, 1, 4, 4, generator=generator(2), dtype=torch.float64) - 0.5)).clamp(0.3, 0.7)
    labels = model(images).argmax(1)
    seen = []

    def observe(best_margin, gradient):
        if gradient is not None:
            seen.append(gradient)

    apgd(model, images, labels, eps=0.03, steps=20, norm=norm, stop_at_success=False, observe=observe)
    gradients = torch.cat(seen)
    assert bool((gradients != 0).all())
    if (
        norm == "l2"
    ):  # of the cross-entropy: a combination of differences of the weights, and nothing projected out of it
        basis, _ = torch.linalg.qr((model.weight[1:] - model.weight[0]).detach().T)
        flat = gradients.double().flatten(1)
        flat = flat / flat.norm(dim=1, keepdim=True)
        torch.testing.assert_close(flat @ basis @ basis.T, flat, rtol=0, atol=1e-5)


def test_a_samples_fate_under_apgd_does_not_depend_on_the_others(problem):
    """The package alone would draw the restart's starts for the survivors only."""
    model, images, labels = problem
    together = apgd(model, images, labels, eps=0.02, steps=5, restarts=2)
    fallen = model(together).argmax(1) != labels
    assert 0 < int(fallen.sum()) < len(fallen)
    again = apgd(model, images, labels, eps=0.02, steps=5, restarts=2, stop_at_success=False)
    assert torch.equal(model(again).argmax(1) != labels, fallen)
