"""The networks that come with the library do what their model cards say."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pursamere as ps
from pursamere import pretrained
from pursamere._threads import cpu_threads
from pursamere.pretrained.digits import train_classifier

SIGMAS = (0.1, 0.2, 0.4, 0.8)
FLOAT32 = Path(__file__).parent / "data" / "mnist_float32_logits.npz"
FOLDER = Path(ps.__file__).parent / "pretrained"
KINDS = {"mnist": {"denoiser", "classifier"}, "cifar10": {"denoiser", "classifier", "undefended", "adversarial"}}


@pytest.fixture(scope="module")
def mnist():
    return ps.load_pretrained("mnist")


@pytest.fixture(scope="module")
def cifar10():
    return ps.load_pretrained("cifar10")


@pytest.fixture(scope="module")
def test_set():
    if not os.environ.get("PURSAMERE_DATA"):
        pytest.skip("PURSAMERE_DATA is not set, so there is no MNIST")
    return ps.datasets.load("mnist", "test")


@pytest.fixture(scope="module")
def digits():
    return ps.load_pretrained("digits")


def error(denoiser, images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = [denoiser(part, sigma) for part in (images + sigma * noise).split(64)]
    return float((torch.cat(parts) - images).square().mean())


def test_what_print_shows_is_short(digits):
    shown = repr(digits)
    assert shown.startswith(
        "Pretrained(denoiser=KernelDensity, classifier=Sequential, undefended=Sequential, purifier="
    )
    assert "sigma=0.2" in shown
    assert "images=[512, 1, 8, 8]" in shown
    assert len(shown) < 800


@pytest.mark.parametrize(("name", "most"), [("mnist", 3_000_000), ("cifar10", 20_000_000)])
def test_small_enough_to_ship(name, most):
    files = list((FOLDER / name).rglob("*.safetensors"))
    assert {file.parent.name for file in files} == KINDS[name]
    assert sum(file.stat().st_size for file in files) <= most
    cards = [FOLDER / name] if name == "cifar10" else [FOLDER / name / kind for kind in KINDS[name]]
    assert all((card / "README.md").is_file() for card in cards)


@pytest.mark.parametrize("name", KINDS)
def test_the_images_are_the_first_of_the_test_set(name, request):
    included = request.getfixturevalue(name).test
    if not os.environ.get("PURSAMERE_DATA"):
        pytest.skip("PURSAMERE_DATA is not set, so there is no data set to compare with")
    test_set = ps.datasets.load(name, "test")
    assert len(included) == 512
    assert torch.equal(included.images, test_set.images[:512])
    assert torch.equal(included.labels, test_set.labels[:512])


@pytest.mark.parametrize("name", KINDS)
def test_the_classifiers_and_the_images_name_their_classes_alike(name, request):
    loaded = request.getfixturevalue(name)
    assert loaded.classifier.class_names == loaded.undefended.class_names == loaded.test.classes
    assert len(loaded.test.classes) == 10


@pytest.mark.slow
def test_the_digits_come_with_networks_that_have_seen_the_training_split_only(digits):
    test, train = (ps.datasets.load("digits", split) for split in ("test", "train"))
    assert torch.equal(digits.test.images, test.images)
    assert torch.equal(digits.denoiser.images, train.images)
    assert not digits.classifier.training
    assert not any(parameter.requires_grad for parameter in digits.classifier.parameters())
    assert float((digits.classifier(test.images).argmax(1) == test.labels).float().mean()) > 0.97


@pytest.mark.slow
def test_the_classifier_of_the_digits_depends_on_its_seed_alone(digits):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.random.fork_rng(), cpu_threads(threads + 1), torch.no_grad():
        torch.manual_seed(12345)
        again, other = train_classifier(), train_classifier(seed=1, epochs=1)
        assert torch.get_num_threads() == threads + 1
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), digits.classifier.parameters(), strict=True))
    assert not torch.equal(other[0].weight, again[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_purifier_has_the_tuned_settings(name, request):
    loaded = request.getfixturevalue(name)
    for setting, value in pretrained.TUNED[name].items():
        assert getattr(loaded.purifier.noise if setting == "draws" else loaded.purifier, setting) == value
    assert loaded.purifier.denoiser is loaded.denoiser


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist"])  # CIFAR-10's classifier has seen such images in training
def test_the_purifier_helps(name, request):
    """Against a one-step attack on its classifier alone, at the smaller radius that the settings were tuned for."""
    loaded = request.getfixturevalue(name)
    images, labels = loaded.test.images[:64], loaded.test.labels[:64]
    eps = pretrained.EPS[name][0]
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(loaded.classifier(x), labels), x)
    adversarial = (images + eps * gradient.sign()).clamp(0, 1)
    model = ps.PurifiedClassifier(loaded.purifier, loaded.classifier)
    with torch.no_grad():
        alone, purified = (float((f(adversarial).argmax(1) == labels).float().mean())
                           for f in (loaded.classifier, model))  # fmt: skip
    assert purified > alone + 0.1


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", KINDS)
def test_the_denoiser_beats_the_identity(name, sigma, request):
    loaded = request.getfixturevalue(name)
    assert error(loaded.denoiser, loaded.test.images[:64], sigma) < 0.5 * sigma**2
    assert loaded.denoiser.sigma_range[0] <= sigma <= loaded.denoiser.sigma_range[1]


@pytest.mark.slow
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_beats_the_kernel_density(mnist, test_set, sigma):
    """With the best of four bandwidths, chosen here on the very images, which favors it."""
    images, train = test_set.images[:128], ps.datasets.load("mnist", "train+validation").images
    closed_form = min(error(ps.denoisers.KernelDensity(train, b), images, sigma) for b in (0.05, 0.1, 0.15, 0.2))
    assert error(mnist.denoiser, images, sigma) < closed_form


def test_the_classifier_on_the_images_that_ship(mnist):
    with torch.no_grad():
        right = mnist.classifier(mnist.test.images).argmax(1) == mnist.test.labels
    assert float(right.float().mean()) >= 0.98


def test_the_classifiers_of_cifar10_on_the_images_that_ship(cifar10):
    images, labels = cifar10.test.images, cifar10.test.labels
    adversarial = ps.load_checkpoint(pretrained.folder("cifar10") / "adversarial")
    behind_purifier = ps.PurifiedClassifier(cifar10.purifier, cifar10.classifier)
    for model, least in ((cifar10.undefended, 0.87), (adversarial, 0.64), (behind_purifier, 0.7)):
        with torch.no_grad():
            said = torch.cat([model(part).argmax(1) for part in images.split(128)])
        assert float((said == labels).float().mean()) >= least


@pytest.mark.slow
def test_the_classifier_on_the_whole_test_set(mnist, test_set):
    with torch.no_grad():
        said = torch.cat([mnist.classifier(part).argmax(1) for part in test_set.images.split(500)])
    assert float((said == test_set.labels).float().mean()) >= 0.99


def purified(mnist, gradient="exact", **options):
    purifier = ps.Purifier(
        mnist.denoiser, sigma=0.5, steps=2, step_size=4.0, radius=0.3, noise=ps.GaussianNoise(draws=2), **options
    )
    return ps.PurifiedClassifier(purifier, mnist.classifier, gradient=gradient)


@pytest.mark.slow
def test_the_same_bits_in_any_batch(mnist):
    """D2, where it does not hold by construction: several images go through the network at a time."""
    model = purified(mnist, micro_batch=4, invariance="strict")
    images = mnist.test.images[:6]
    logits = model(images)
    assert torch.equal(logits.argmax(1), mnist.test.labels[:6])
    assert torch.equal(torch.cat([model(image[None]) for image in images.flip(0)]).flip(0), logits)
    assert torch.equal(model(images.roll(2, 0)).roll(-2, 0), logits)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ere", "score"])
def test_the_exact_gradient_is_the_unrolled_one(mnist, direction):
    x = mnist.test.images[:2].clone().requires_grad_()
    models = [purified(mnist, gradient, direction=direction) for gradient in ("exact", "unrolled")]
    exact, unrolled = (torch.autograd.grad(model(x).logsumexp(1).sum(), x)[0] for model in models)
    assert float((exact - unrolled).norm()) <= 1e-4 * float(unrolled.norm())


@pytest.mark.slow
def test_half_precision_decides_like_the_float32_weights(mnist):
    """`experiments/run.py mnist-half` wrote the float32 weights' logits, from the state of the training itself."""
    original = {name: torch.from_numpy(logits) for name, logits in np.load(FLOAT32).items()}
    assert json.loads((FOLDER / "mnist" / "denoiser" / "config.json").read_text())["weights"]["dtype"] == "float16"
    model = ps.PurifiedClassifier(pretrained.make_purifier("mnist", mnist.denoiser, micro_batch=8), mnist.classifier)
    for name, said in (
        ("undefended", mnist.classifier(mnist.test.images)),
        ("purified", model(mnist.test.images[:32])),
    ):
        expected = original[name][: len(said)]
        assert torch.equal(said.argmax(1), expected.argmax(1))
        torch.testing.assert_close(said, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_devices_that_cannot_be_used(monkeypatch, name):
    from pursamere import _validation

    monkeypatch.setattr(_validation, "BUILT_WITH_CUDA", False)
    with pytest.raises(ValueError, match="device is on cuda, but pursamere was built without CUDA"):
        ps.load_pretrained(name, "cuda")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("mnist", "diffusers", "train"), ("mnist", "safetensors.torch", "train"), ("digits", "sklearn.datasets", "demo")],
)
def test_a_missing_extra_is_named(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "pursamere\[{extra}\]"'):
        ps.load_pretrained(name)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of 'digits', 'mnist', 'cifar10', got 'imagenet'"):
        ps.load_pretrained("imagenet")
