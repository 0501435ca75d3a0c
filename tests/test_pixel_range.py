"""Images that attack libraries hand over: a little outside of [0, 1], outside on purpose, or in float64."""

import pytest
import torch
from cases import tensor
from nets import conv_classifier, conv_denoiser

import pursamere as ps

GRADIENTS = ("exact", "straight_through", "identity", "unrolled")
ROUNDING = torch.tensor([-1.1e-7, -9e-5, 0.0, 1.0, 1 + 1.2e-7, 1 + 9e-5])


def model(gradient="exact", dtype=torch.float32, **keywords):
    purifier = ps.Purifier(conv_denoiser(dtype=dtype), sigma=0.2, steps=2, radius=0.1, noise=ps.GaussianNoise(draws=2))
    return ps.PurifiedClassifier(purifier, conv_classifier(dtype=dtype), gradient, **keywords)


def images(values):
    """Interior images whose first pixels have the given values."""
    x = tensor(0, 3, 1, 6, 6, low=0.2, high=0.8).float()
    x[:, 0, 0, : len(values)] = values
    return x


def gradient_of(of, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(of(leaf)[:, 0].sum(), leaf)[0]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("clip", [False, True])
def test_rounding_is_clipped_and_keeps_its_derivative(gradient, clip):
    of, x = model(gradient, clip=clip), images(ROUNDING)
    assert torch.equal(of(x), of(x.clamp(0, 1)))
    assert torch.equal(of.purifier(x), of.purifier(x.clamp(0, 1)))
    assert torch.equal(gradient_of(of, x), gradient_of(of, x.clamp(0, 1)))
    assert torch.equal(of(x)[1:2], of(x[1:2]))
    assert torch.equal(of.purifier.trace(x).images[0], x.clamp(0, 1))


@pytest.mark.parametrize("value", [-1.1e-4, 1 + 1.1e-4, -0.5, 2.0])
def test_the_rest_is_refused(value):
    with pytest.raises(ValueError, match=r"x must have values in \[0, 1\], got a range of"):
        model()(images(torch.tensor([value])))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_clip(gradient):
    of, x = model(gradient, clip=True), images(torch.tensor([-0.3, 1.7, 1e6]))
    assert torch.equal(of(x), of(x.clamp(0, 1)))
    got, want = gradient_of(of, x), gradient_of(of, x.clamp(0, 1))
    if gradient in ("exact", "unrolled"):
        want = torch.where(x == x.clamp(0, 1), want, 0.0)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="x must be finite"):
        of(x * torch.inf)
    with pytest.raises(TypeError, match="clip must be a bool, got int"):
        model(clip=1)


def test_rounding_in_what_is_attacked_and_stored():
    of, x, labels = model(), images(ROUNDING), torch.tensor([0, 1, 2])
    got, want = (ps.attacks.pgd(of, each, labels, eps=0.1, steps=1, seed=0) for each in (x, x.clamp(0, 1)))
    assert torch.equal(got, want)
    stored = ps.datasets.Dataset("some", x, labels, ("a", "b", "c"))
    assert torch.equal(stored.images, x.clamp(0, 1))


def test_float64_images_for_float32_networks():
    of, x = model(), images(ROUNDING)
    assert torch.equal(of(x.double()), of(x))
    torch.testing.assert_close(gradient_of(of, x.double()), gradient_of(of, x).double())
    assert model(dtype=torch.float64)(x.double()).dtype == torch.float64
    closed = ps.Purifier(lambda y, sigma: 0.9 * y, sigma=0.2, radius=0.2, steps=1)
    assert ps.PurifiedClassifier(closed, lambda x: x.flatten(1))(x.double()).dtype == torch.float64
