"""Attacks, against models whose answer is known."""

import math

import pytest
import torch
from attacks_case import TwoOfThree, make_problem
from torch import Tensor

import pursamere as ps
from pursamere.attacks import difference_of_logits_ratio, ere_penalty, margin, pgd, random_search, transfer
from pursamere.attacks.losses import LOSSES

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
    found = pgd(model, images, labels, eps=eps, steps=10)
    assert (model(found).argmax(1) == labels).double().mean() == expected
    found = pgd(model, images, labels, eps=eps, steps=10, stop_at_success=False)
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-15)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("steps", [1, 7])
def test_ball_and_box_are_respected(problem, stop, steps):
    model, images, labels = problem
    found = pgd(model, images, labels, eps=EPS, steps=steps, stop_at_success=stop)
    assert (found - images).abs().max() <= EPS + 1e-15
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - images).abs().max() > 0.99 * EPS


def test_the_start_is_uniform_in_the_ball():
    flat = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)

    def constant(x):
        return torch.cat([x.flatten(1).sum(1, keepdim=True) * 0, torch.zeros(len(x), 1, dtype=x.dtype)], dim=1)

    starts = [pgd(constant, flat, torch.zeros(2000).long(), eps=EPS, steps=1, seed=s) for s in (0, 0, 1)]
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
    found = pgd(model, images, labels, eps=EPS, steps=1)
    start = pgd(Linear(model.weight * 0, 1.0), images, labels, eps=EPS, steps=1)
    assert (start.flatten() > 0.5 - 0.9 * EPS).sum() > 40  # nearly all starts are right
    assert bool((model(found).argmax(1) != labels).all())


def test_the_best_iterate_is_returned_and_not_the_last():
    """A model that answers differently from one call to the next: the margins of the calls are given."""
    images = torch.full((1, 1, 1, 1), 0.5)
    calls: list[Tensor] = []

    def model(x):
        calls.append(x.detach().clone())
        value = (5.0, 1.0, 3.0, 2.0, 4.0)[len(calls) - 1]  # the first for the image as it is
        return torch.stack([x.flatten() * 0 + value + x.flatten() - x.flatten().detach(), x.flatten() * 0], dim=1)

    found = pgd(model, images, torch.zeros(1).long(), eps=EPS, steps=3)
    assert len(calls) == 5
    assert torch.equal(found, calls[1])
    assert not torch.equal(calls[1], calls[4])


def test_stopping_at_success_saves_work_and_changes_no_outcome(problem):
    model, images, labels = problem
    outcomes, seen = [], []
    for stop in (True, False):
        model.seen = 0
        found = pgd(model, images, labels, eps=EPS, steps=10, stop_at_success=stop)
        seen.append(model.seen)
        outcomes.append(model(found).argmax(1) == labels)
    assert torch.equal(*outcomes)
    assert seen[1] == 12 * len(images)
    assert seen[0] < 0.8 * seen[1]


@pytest.mark.parametrize("labels", [0, 1])
def test_progress_sums_up_to_the_steps(labels):
    images = torch.full((5, 1, 1, 1), 0.5)
    model = Linear(torch.ones(1, 1, 1), 0.5)  # always class 1: class 0 falls at once
    done: list[int] = []
    pgd(model, images, torch.full((5,), labels), eps=EPS, steps=6, progress=done.append)
    assert sum(done) == 6


def test_margin():
    logits = torch.tensor([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5], [0.0, -math.inf, 5.0]])
    torch.testing.assert_close(margin(logits, torch.tensor([1, 2, 2])), torch.tensor([0.5, -0.5, 5.0]))


@pytest.mark.slow
def test_global_state_is_left_alone(problem):
    model, images, labels = problem
    before = torch.get_rng_state()
    with torch.no_grad():  # the caller's mode does not matter and is kept
        pgd(model, images, labels, eps=EPS, steps=3)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("eps", [0.03, 0.15])
def test_exact_robust_accuracy_of_a_linear_model_in_l2(loss, eps):
    """Away from the ends of the pixel range the distance to the boundary is |<w, x> + b| / ||w||."""
    weight = torch.randn(1, 4, 4, generator=generator(1), dtype=torch.float64)
    images = (0.5 + 0.1 * torch.randn(300, 1, 4, 4, generator=generator(2), dtype=torch.float64)).clamp(0.2, 0.8)
    model = Linear(weight, -0.5 * float(weight.sum()))
    distance = model.score(images) / model.weight.norm()
    labels = (distance > 0).long()
    expected = (distance.abs() > eps).double().mean()
    assert 0.05 < expected < 0.95, "the problem is trivial"
    found = pgd(model, images, labels, eps=eps, steps=50, norm="l2", loss=loss)
    assert float((found - images).flatten(1).norm(dim=1).max()) <= eps * (1 + 1e-12)
    assert (model(found).argmax(1) == labels).double().mean() == expected


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_in_the_ball_are_uniform_and_legal(norm):
    flat = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)

    def constant(x):
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, torch.zeros(len(x), dtype=x.dtype)], dim=1)

    offset = (pgd(constant, flat, torch.zeros(4000).long(), eps=EPS, steps=1, norm=norm) - flat).flatten(1) / EPS
    assert abs(float(offset.mean())) < 0.02
    if norm == "l2":  # the share of a ball within half its radius is an eighth
        length = offset.norm(dim=1)
        assert float(length.max()) <= 1 + 1e-12
        assert abs(float((length < 0.5).double().mean()) - 0.125) < 0.02


def three_classes(x):
    """Logits that only the pixel sums decide."""
    total = x.flatten(1).sum(1)
    return torch.stack([total, 1 - total, 0.3 + 0 * total], dim=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_finds_the_boundary(loss):
    images = torch.rand(50, 1, 1, 2, generator=generator(4), dtype=torch.float64)
    labels = three_classes(images).argmax(1)
    # The sum moves by up to 2 eps, and each class is where its logit leads.
    total = images.flatten(1).sum(1)
    low = (images - EPS).clamp(0, 1).flatten(1).sum(1)
    high = (images + EPS).clamp(0, 1).flatten(1).sum(1)
    classes = [three_classes(t.view(-1, 1, 1, 1)).argmax(1) for t in (low, high)]
    expected = ((classes[0] == labels) & (classes[1] == labels)).double().mean()
    assert 0.3 < expected < 1
    assert three_classes(total.view(-1, 1, 1, 1)).argmax(1).equal(labels)
    found = pgd(three_classes, images, labels, eps=EPS, steps=40, loss=loss, restarts=3)
    assert (three_classes(found).argmax(1) == labels).double().mean() == pytest.approx(float(expected), abs=0.02)


def test_dlr_is_invariant_and_needs_three_classes():
    logits, labels = torch.randn(20, 5, generator=generator(5)), torch.arange(20) % 5
    values = difference_of_logits_ratio(logits, labels)
    torch.testing.assert_close(difference_of_logits_ratio(7 * logits + 3, labels), values, rtol=1e-4, atol=1e-5)
    assert torch.equal(values > 0, logits.argmax(1) != labels)
    with pytest.raises(ValueError, match="the DLR loss needs at least 3 classes, got 2"):
        difference_of_logits_ratio(logits[:, :2], labels % 2)


def test_restarts_only_help_and_are_repeatable(problem):
    model, images, labels = problem

    def bumpy(x):  # many local optima
        score = model.score(x) + 2 * (9 * x.flatten(1)).sin().sum(1)
        return torch.stack([torch.zeros_like(score), score], dim=1)

    margins = []
    for restarts in (1, 4):
        found = pgd(bumpy, images, labels, eps=EPS, steps=5, restarts=restarts, stop_at_success=False)
        again = pgd(bumpy, images, labels, eps=EPS, steps=5, restarts=restarts, stop_at_success=False)
        assert torch.equal(found, again)
        margins.append(margin(bumpy(found), labels))
    assert bool((margins[1] <= margins[0]).all())
    assert bool((margins[1] < margins[0]).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_search_is_legal_and_weaker_than_the_gradient(problem, norm):
    model, images, labels = problem
    found = random_search(model, images, labels, eps=EPS, queries=20, norm=norm)
    offset = (found - images).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert float(length.max()) <= EPS * (1 + 1e-9)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    by_gradient = pgd(model, images, labels, eps=EPS, steps=10, norm=norm, stop_at_success=False)
    clean, random, gradient = (margin(model(x), labels) for x in (images, found, by_gradient))
    assert bool((random <= clean).all())
    assert float(random.mean()) < float(clean.mean())
    assert bool((gradient <= random + 1e-12).all())


def test_the_ere_penalty_keeps_the_error_small():
    denoiser = ps.denoisers.GaussianMixture(torch.full((1, 1, 4, 4), 0.5), 0.3)
    purifier = ps.Purifier(denoiser, sigma=0.3, radius=0.2, noise=ps.GaussianNoise(draws=4))
    images = torch.rand(6, 1, 4, 4, generator=generator(6), dtype=torch.float64) * 0.6 + 0.2
    slope = torch.randn(1, 4, 4, generator=generator(7), dtype=torch.float64)
    model = Linear(slope, 100.0)  # always right: every sample is attacked to the end
    errors = []
    for penalty in (None, ere_penalty(purifier, 200.0)):
        found = pgd(model, images, torch.ones(6).long(), eps=EPS, steps=30, loss="cross_entropy", penalty=penalty)
        errors.append(ps.expected_reconstruction_error(denoiser, found, 0.3, purifier.noise))
    assert bool((errors[1] <= errors[0]).all())
    assert float(errors[1].mean()) < 0.95 * float(errors[0].mean())
    ere = ps.expected_reconstruction_error(denoiser, images, 0.3, purifier.noise)
    torch.testing.assert_close(ere_penalty(purifier, 10.0)(images), 10.0 * ere)
    with pytest.raises(ValueError, match=r"penalty must return shape \(6,\), got \(\)"):
        pgd(model, images, torch.ones(6).long(), eps=EPS, steps=1, penalty=lambda x: x.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_blind_attack_is_an_error_and_not_robustness(problem, norm):
    _, images, labels = problem
    images, labels = images[:4].float(), labels[:4]

    def with_nan_logits(x):
        return torch.stack([x.flatten(1).sum(1) * torch.nan, x.flatten(1).sum(1)], dim=1)

    def with_nan_gradient(x):
        total = x.flatten(1).sum(1)
        return torch.stack([total * 0 + (total - total.detach()).abs().sqrt() * 0, total * 0 + 1], dim=1)

    for model, message in ((with_nan_logits, "model returned NaN or infinity"), (with_nan_gradient, "the gradient of")):
        with pytest.raises(RuntimeError, match=message):
            pgd(model, images, torch.ones(4).long(), eps=EPS, steps=3, norm=norm)
    with pytest.raises(ValueError, match="model must be differentiable in its input"):
        pgd(lambda x: with_nan_gradient(x).detach(), images, torch.ones(4).long(), eps=EPS, steps=1, norm=norm)


def test_radii_in_gray_levels_are_refused(problem):
    for attack in (pgd, ps.attacks.apgd, ps.attacks.square, random_search):
        with pytest.raises(
            ValueError, match="eps must be at most 1, the range of the images, and is often 8/255, got 8"
        ):
            attack(*problem, eps=8)
    pgd(*problem, eps=8, norm="l2", steps=1)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (torch.nn.Sequential(), "sources must be models, for example .*, got Sequential"),
        ("bare", "sources must be models, for example .*, got str"),
        (["bare"], "sources must be models, got 'bare' among them"),
    ],
)
def test_sources_of_transfer_are_models(problem, sources, message):
    with pytest.raises(TypeError, match=message):
        transfer(*problem, sources=sources, eps=EPS)


def test_labels_of_another_type(problem):
    model, images, labels = problem
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor, got torch.int32; use labels.long\(\)"):
        pgd(model, images, labels.int(), eps=EPS)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor, got torch.float32$"):
        pgd(model, images, labels.float(), eps=EPS)


def test_a_model_in_training_mode_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2)).train()
    images, labels = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    for attack in (pgd, ps.attacks.apgd, ps.attacks.square, random_search):
        with pytest.raises(ValueError, match="model must be in evaluation mode, but its layer '1' is training"):
            attack(model, images, labels, eps=EPS)


def test_tiny_gradients_move_as_far_as_large_ones():
    weight = torch.randn(1, 4, 4, generator=generator(1))
    images = torch.full((5, 1, 4, 4), 0.5)
    results = []
    for scale in (1.0, 1e-26):
        model = Linear(weight * scale, 0.0)
        results.append(pgd(model, images, torch.ones(5).long(), eps=EPS, steps=9, norm="l2", stop_at_success=False))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
    assert float((results[0] - images).flatten(1).norm(dim=1).min()) > 0.9 * EPS


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_few_steps_reach_the_whole_ball(problem, steps):
    model, images, labels = problem
    found = pgd(model, images, labels, eps=EPS, steps=steps, stop_at_success=False)
    torch.testing.assert_close(found, optimum(model, images, labels, EPS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stop", [True, False])
def test_an_image_that_is_wrong_as_it_is_stays_found(stop):
    """Here every other image in the ball is right."""
    images = torch.full((6, 1, 2, 2), 0.5, dtype=torch.float64)

    def model(x):
        away = (x - 0.5).flatten(1).abs().sum(1)
        return torch.stack([away - 1e-9, torch.zeros_like(away)], dim=1)

    found = pgd(model, images, torch.zeros(6).long(), eps=EPS, steps=3, stop_at_success=stop)
    assert torch.equal(found, images)


def test_the_callers_modes_and_tensors_do_not_matter(problem):
    model, images, labels = problem
    want = pgd(model, images, labels, eps=EPS, steps=3)
    with torch.inference_mode():
        assert torch.equal(pgd(model, images * 1, labels * 1, eps=EPS, steps=3), want)
    tracked = pgd(model, images.clone().requires_grad_(), labels, eps=EPS, steps=3)
    assert not tracked.requires_grad
    assert torch.equal(tracked, want)


@pytest.mark.slow
def test_a_purified_classifier_is_attacked_end_to_end(problem):
    _, images, _ = problem
    denoiser = ps.denoisers.GaussianMixture(torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.8)]), 0.1)
    purifier = ps.Purifier(denoiser, sigma=0.2, steps=2, radius=0.05, noise=ps.GaussianNoise(draws=2))
    base = Linear(torch.ones(1, 4, 4, dtype=torch.float64), -8.0)
    images = images[:20]
    labels = base(images).argmax(1)
    for gradient in ("exact", "straight_through", "identity"):
        model = ps.PurifiedClassifier(purifier, base, gradient=gradient)
        found = pgd(model, images, labels, eps=0.2, steps=5)
        assert float(margin(model(found), labels).mean()) < float(margin(model(images), labels).mean())


@pytest.mark.parametrize("attack", [pgd, random_search])
def test_bad_input_is_refused_before_any_work(attack):
    x, labels = torch.rand(3, 1, 2, 2), torch.zeros(3).long()

    def forbidden(images):
        raise AssertionError("the model was run")

    cases = [
        ((x + 1, labels), {"eps": 0.1}, ValueError, r"images must have values in \[0, 1\]"),
        ((x, labels[:2]), {"eps": 0.1}, ValueError, r"labels must have shape \(3,\), got \(2,\)"),
        ((x, labels.float()), {"eps": 0.1}, TypeError, "labels must be an int64 tensor, got torch.float32"),
        ((x, labels), {"eps": 0.0}, ValueError, "eps must be positive"),
        ((x, labels), {"eps": 0.1, "norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ((x, labels), {"eps": 0.1, "seed": -1}, ValueError, "seed must be at least 0"),
    ]
    count = "steps" if attack is pgd else "queries"
    cases.append(((x, labels), {"eps": 0.1, count: 0}, ValueError, f"{count} must be at least 1"))
    if attack is pgd:
        cases.append(((x, labels), {"eps": 0.1, "loss": "hinge"}, ValueError, "loss must be one of 'margin'"))
        cases.append(((x, labels), {"eps": 0.1, "restarts": 0}, ValueError, "restarts must be at least 1"))
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            attack(forbidden, *arguments, **options)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got \[0, 5\]"):
        attack(lambda images: images.flatten(1)[:, :2], x, torch.tensor([0, 1, 5]), eps=0.1)
    with pytest.raises(ValueError, match=r"model must return logits \[3, classes\], got shape \(3,\)"):
        attack(lambda images: images.flatten(1).sum(1), x, labels, eps=0.1)


def test_transfer_keeps_the_best_of_its_sources():
    _, images, _ = make_problem()
    model, other = TwoOfThree(), TwoOfThree()
    other.weight.data = -model.weight.data
    labels = model(images).argmax(1)
    margins = [
        margin(model(transfer(model, images, labels, sources=sources, eps=0.02, steps=5)), labels)
        for sources in ([other], [model], [other, model])
    ]
    clean = margin(model(images), labels)
    assert torch.equal(margins[0], clean)  # moving against the model helps nobody, so the images stay
    assert torch.equal(margins[2], margins[1])
    assert bool((margins[1] < clean).all())
