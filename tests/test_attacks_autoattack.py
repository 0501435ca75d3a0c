"""AutoAttack and Square, against models whose answer is known, and what they share with APGD."""

import sys
import warnings

import pytest
import torch
from attacks_case import Linear, TwoOfThree, dynamic_models, generator, make_problem
from torch import nn

import pursamere as ps
from pursamere.attacks import apgd, autoattack, pgd, square, transfer


@pytest.fixture
def problem():
    return make_problem()


@pytest.mark.slow
def test_square_and_autoattack_reach_the_exact_robust_accuracy(problem):
    model, images, labels = problem
    images, labels = images[:40], labels[:40]
    two = TwoOfThree()
    for edge in (two.weight.data.view(3, 4, 4)[:, -1], two.weight.data.view(3, 4, 4)[:, :, -1]):
        edge.zero_()  # the package never places its smallest squares there
    answers = two(images).argmax(1)
    expected = two.is_robust(images, answers, 0.02, "linf")
    assert 0.2 < expected.float().mean() < 0.8, "the problem is trivial"
    found = square(two, images, answers, eps=0.02, queries=2000)
    robust = two(found).argmax(1) == answers
    assert torch.equal(robust, expected)
    expected = model.is_robust(images, labels, 0.02, "linf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = autoattack(model, images, labels, eps=0.02, queries=20)
    assert torch.equal(model(found).argmax(1) == labels, expected)
    assert float((found - images).abs().max()) <= 0.02 + 1e-7


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    model = Linear(classes)
    images = 0.5 + 0.3 * (torch.rand(30, 1, 4, 4, generator=generator(2)) - 0.5)
    labels = model(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = autoattack(model, images, labels, eps=0.02, queries=20)
    assert torch.equal(model(found).argmax(1) == labels, model.is_robust(images, labels, 0.02, "linf"))
    for attack in (apgd, pgd):
        with pytest.raises(ValueError, match=rf"at least 4 classes, (got|.*) {classes}"):
            attack(model, images, labels, eps=0.02, loss="targeted_dlr")


@pytest.mark.parametrize("attack", [apgd, autoattack, square, transfer])
def test_float64_models_and_wrong_images_and_empty_batches(problem, attack):
    model, images, labels = problem
    model, images = model.double(), images.double()
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
    if attack is transfer:
        options["sources"] = [model]
    wrong = (labels + 1) % 5
    found = attack(model, images[:5], wrong[:5], eps=0.02, **options)
    assert found.dtype == torch.float64
    assert float((found - images[:5]).abs().max()) <= 0.02 + 1e-15
    if attack is not transfer:
        assert torch.equal(found, images[:5])
    assert attack(model, images[:0], labels[:0], eps=0.02, **options).shape == (0, 1, 4, 4)


def test_autoattack_hands_on_warnings():
    images = torch.rand(4, 1, 4, 4, generator=generator(3))
    plain, dynamic = dynamic_models()
    said: list[str] = []
    labels = (plain(images).argmax(1) + 1) % 5  # wrong, so that only the package's checks take time
    autoattack(dynamic, images, labels, eps=0.001, queries=5, on_warning=said.append)
    assert any("dynamic defense" in text for text in said)
    with pytest.warns(RuntimeWarning, match="AutoAttack: it seems to be a dynamic defense"):
        autoattack(dynamic, images, labels, eps=0.001, queries=5)


class FourClasses(nn.Module):
    """Of a classifier's logits the first four: AutoAttack's time is proportional to their number."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x)[:, :4]


@pytest.mark.slow
def test_autoattack_on_a_purified_classifier_of_16_digits():
    """End to end on real images, with the exact gradient of a small purifier."""
    from pursamere.pretrained.digits import train_classifier

    train, test = (ps.datasets.load("digits", split) for split in ("train", "test"))
    classifier = train_classifier(train, seed=0, epochs=4)
    purifier = ps.Purifier(
        ps.denoisers.KernelDensity(train.images[:200], 0.25),
        sigma=0.2,
        steps=1,
        radius=0.1,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
        micro_batch=16,
    )
    model = ps.PurifiedClassifier(purifier, FourClasses(classifier).eval())
    images, labels = test.images[test.labels < 4][:16], test.labels[test.labels < 4][:16]
    said: list[str] = []
    found = autoattack(model, images, labels, eps=0.2, queries=50, on_warning=said.append)
    assert not [text for text in said if "dynamic" in text or "randomized" in text]
    clean, robust = (model(x).argmax(1) == labels for x in (images, found))
    assert bool((robust <= clean).all())
    assert float(robust.float().mean()) < 0.5
    assert float((found - images).abs().max()) <= 0.2 + 1e-6
    # What it says fell has fallen, and what it left alone is as it was.
    assert torch.equal((found != images).flatten(1).any(1), clean & ~robust)


@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_bad_input_is_refused_before_any_work(attack):
    x, labels = torch.rand(3, 1, 2, 2), torch.zeros(3).long()

    def forbidden(images):
        raise AssertionError("the model was run")

    cases = [
        ((x + 1, labels), {"eps": 0.1}, ValueError, r"images must have values in \[0, 1\]"),
        ((x, labels[:2]), {"eps": 0.1}, ValueError, r"labels must have shape \(3,\), got \(2,\)"),
        ((x, labels), {"eps": -1.0}, ValueError, "eps must be positive"),
        ((x, labels), {"eps": 0.1, "norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ((x, labels), {"eps": 0.1, "seed": -1}, ValueError, "seed must be at least 0"),
    ]
    if attack is apgd:
        cases.append(((x, labels), {"eps": 0.1, "loss": "hinge"}, ValueError, "loss must be one of 'margin'"))
        cases.append(((x, labels), {"eps": 0.1, "steps": 0}, ValueError, "steps must be at least 1"))
    else:
        cases.append(((x, labels), {"eps": 0.1, "queries": 0}, ValueError, "queries must be at least 1"))
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            attack(forbidden, *arguments, **options)


@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_a_blind_attack_is_an_error(attack, problem):
    _, images, labels = problem
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}

    def with_nan(x):
        return x.flatten(1)[:, :5] * torch.nan

    with pytest.raises(RuntimeError, match="model returned NaN or infinity"):
        attack(with_nan, images, labels, eps=0.1, **options)
    if attack is apgd:

        def with_nan_gradient(x):
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([(total - total.detach()).abs().sqrt(), total * 0, total * 0 - 1], 1)

        with pytest.raises(RuntimeError, match="the gradient of the model is NaN or infinite"):
            attack(with_nan_gradient, images, labels * 0, eps=0.1, **options)


def test_a_missing_package_names_the_extra(monkeypatch, problem):
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    model, images, labels = problem
    with pytest.raises(Exception, match=r'pip install "pursamere\[evaluation\]"'):
        apgd(model, images, labels, eps=0.1)
