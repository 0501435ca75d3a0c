"""The networks that come with the library do what their model cards say."""

import os
from pathlib import Path

import pytest
import torch

import pursamere as ps

SIGMAS = (0.1, 0.2, 0.4, 0.8)
FOLDER = Path(ps.__file__).parent / "pretrained" / "mnist"


@pytest.fixture(scope="module")
def mnist():
    return ps.load_pretrained("mnist")


@pytest.fixture(scope="module")
def test_set():
    if not os.environ.get("PURSAMERE_DATA"):
        pytest.skip("PURSAMERE_DATA is not set, so there is no MNIST")
    return ps.datasets.load("mnist", "test")


def error(denoiser, images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = [denoiser(part, sigma) for part in (images + sigma * noise).split(64)]
    return float((torch.cat(parts) - images).square().mean())


def test_small_enough_to_ship():
    weights = [file.stat().st_size for file in FOLDER.rglob("*.safetensors")]
    assert len(weights) == 2
    assert sum(weights) <= 3_000_000
    assert all((FOLDER / kind / "README.md").is_file() for kind in ("denoiser", "classifier"))  # the model cards


def test_the_images_are_the_first_of_the_test_set(mnist, test_set):
    assert len(mnist.images) == 512
    assert torch.equal(mnist.images.images, test_set.images[:512])
    assert torch.equal(mnist.images.labels, test_set.labels[:512])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_beats_the_identity(mnist, sigma):
    images = mnist.images.images[:64]
    assert error(mnist.denoiser, images, sigma) < 0.5 * sigma**2
    assert mnist.denoiser.sigma_range[0] <= sigma <= mnist.denoiser.sigma_range[1]


@pytest.mark.slow
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_beats_the_kernel_density(mnist, test_set, sigma):
    """With the best of four bandwidths, chosen here on the very images, which favours it."""
    images, train = test_set.images[:128], ps.datasets.load("mnist", "train+validation").images
    closed_form = min(error(ps.denoisers.KernelDensity(train, b), images, sigma) for b in (0.05, 0.1, 0.15, 0.2))
    assert error(mnist.denoiser, images, sigma) < closed_form


def test_the_classifier_on_the_images_that_ship(mnist):
    with torch.no_grad():
        right = mnist.classifier(mnist.images.images).argmax(1) == mnist.images.labels
    assert float(right.float().mean()) >= 0.98


@pytest.mark.slow
def test_the_classifier_on_the_whole_test_set(mnist, test_set):
    with torch.no_grad():
        said = torch.cat([mnist.classifier(part).argmax(1) for part in test_set.images.split(500)])
    assert float((said == test_set.labels).float().mean()) >= 0.99


def test_a_purified_classifier_works_at_once_and_in_any_batch(mnist):
    purifier = ps.Purifier(mnist.denoiser, sigma=0.3, steps=2, radius=0.3, noise=ps.GaussianNoise(draws=2))
    model = ps.PurifiedClassifier(purifier, mnist.classifier)
    images, labels = mnist.images.images[:6], mnist.images.labels[:6]
    logits = model(images)
    assert torch.equal(logits.argmax(1), labels)
    assert torch.equal(torch.cat([model(image[None]) for image in images.flip(0)]).flip(0), logits)  # D2
    x = images[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of 'mnist', got 'imagenet'"):
        ps.load_pretrained("imagenet")
