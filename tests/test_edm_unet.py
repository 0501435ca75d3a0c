"""The trainable denoiser: its preconditioning, its derivatives, its bits, and what it refuses."""

import math
import warnings

import pytest
import torch
from training_case import tiny_denoiser

import pursamere as ps
from pursamere.models import EDMUNet


class Elementwise(torch.nn.Module):
    """In place of the U-Net: a function of every value alone, so that patches and padding must cancel out."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x, c_noise, return_dict):
        self.seen = x
        return (torch.sin(self.scale * x) + c_noise.view(-1, 1, 1, 1),)


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 1), ((2, 5, 7), 2)])
def test_preconditioning_is_that_of_karras_et_al(shape, patch):
    """Table 1 and equation 7 of arXiv 2206.00364, with scalars, after x = 2 y - 1, which doubles sigma."""
    sigma_data = 0.4
    network = tiny_denoiser(shape, patch=patch, sigma_data=sigma_data).double()
    network.network = Elementwise()
    y = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for pixel_sigma in (0.05, 0.3, 1.2):
        s = 2 * pixel_sigma
        c_skip = sigma_data**2 / (s**2 + sigma_data**2)
        c_out = s * sigma_data / math.sqrt(sigma_data**2 + s**2)
        c_in = 1 / math.sqrt(sigma_data**2 + s**2)
        c_noise = math.log(s) / 4
        x = 2 * y - 1
        expected = (c_skip * x + c_out * (torch.sin(3 * c_in * x) + c_noise) + 1) / 2
        torch.testing.assert_close(network(y, pixel_sigma), expected, rtol=1e-12, atol=1e-12)
        # Its input has variance 1 for data of standard deviation sigma_data, and lambda undoes c_out: an error of the
        # network's output is one of c_out / 2 in pixels.
        assert c_in**2 * (sigma_data**2 + s**2) == pytest.approx(1)
        weight = network.loss_weight(torch.tensor(pixel_sigma, dtype=torch.float64))
        assert float(weight) * (c_out / 2) ** 2 == pytest.approx(1, rel=1e-12)
    assert network.network.seen.shape == (3, shape[0] * patch**2, -(-shape[1] // patch), -(-shape[2] // patch))


def test_one_noise_level_per_image_is_the_same_as_one_call_each():
    network = tiny_denoiser((1, 6, 6), patch=2).double()
    y = torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigmas = [0.05, 0.4, 1.5]
    together = network(y, torch.tensor(sigmas, dtype=torch.float64))
    for row, sigma in enumerate(sigmas):
        torch.testing.assert_close(together[row : row + 1], network(y[row : row + 1], sigma), rtol=1e-12, atol=1e-12)
    assert network.float()(y, 0.4).dtype == torch.float64  # of the images, whatever the weights are


@pytest.mark.slow
def test_exact_gradient_is_unrolled_in_float64():
    network = tiny_denoiser((1, 6, 6), attention=True).double()
    purifier = ps.Purifier(
        network, sigma=0.2, steps=2, step_size=0.2, ascent_radius=0.1, radius=0.3, micro_batch=1,
        noise=ps.GaussianNoise(draws=2),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    x = (0.1 + 0.8 * torch.rand(2, 1, 6, 6, dtype=torch.float64, generator=generator)).requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    exact, unrolled = (
        torch.autograd.grad((purifier(x, gradient=mode) * weights).sum(), x)[0] for mode in ("exact", "unrolled")
    )
    assert float((exact - unrolled).abs().max()) <= 1e-9 * float(unrolled.abs().max())
    assert float((unrolled - weights).abs().max()) > 1e-3  # the purifier did something that has a derivative


def test_a_sample_has_the_same_bits_in_any_batch():
    purifier = ps.Purifier(
        tiny_denoiser(attention=True, patch=2),
        sigma=0.2,
        radius=0.2,
        steps=2,
        micro_batch=1,
        noise=ps.GaussianNoise(draws=2),
    )
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    together = purifier(x)
    order = [2, 0, 3, 1]
    assert torch.equal(purifier(x[order]), together[order])
    assert torch.equal(torch.cat([purifier(part) for part in x.split([1, 3])]), together)


def test_a_noise_level_outside_the_trained_range_warns_once():
    network = tiny_denoiser(sigma_range=(0.1, 0.5))
    y = torch.full((1, 1, 8, 8), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(y, 0.1)
        network(y, 0.5)
    with pytest.warns(UserWarning, match=r"sigma=0.6 is outside the range .* trained for, \[0.1, 0.5\]"):
        network(y, 0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(y, 0.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image_shape": (8, 8)}, ValueError, "image_shape must have 3 numbers, got 2"),
        ({"image_shape": "188"}, TypeError, "image_shape must be a sequence of ints, got str"),
        ({"channels": (8.0,)}, TypeError, r"channels\[0\] must be an int, got float"),
        ({"channels": (5000,)}, ValueError, r"channels\[0\] must be in \[1, 4096\], got 5000"),
        ({"channels": (9,)}, ValueError, "channels must be multiples of groups, 4, got"),
        ({"layers": 0}, ValueError, r"layers must be in \[1, 16\], got 0"),
        ({"patch": True}, TypeError, "patch must be an int, got bool"),
        ({"attention": 1}, TypeError, "attention must be a bool, got int"),
        ({"sigma_data": 0}, ValueError, "sigma_data must be positive"),
        ({"sigma_range": (0.5, 0.1)}, ValueError, r"sigma_range must be \(lowest, highest\)"),
        ({"sigma_range": 0.5}, ValueError, r"sigma_range must be two numbers"),
    ],
)
def test_arguments_that_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        EDMUNet(**{"image_shape": (1, 8, 8), "channels": (8,), "groups": 4, **change})


def test_inputs_that_are_refused():
    network = tiny_denoiser()
    with pytest.raises(ValueError, match=r"y must have the shape \[N, 1, 8, 8\], got \[2, 1, 8, 9\]"):
        network(torch.zeros(2, 1, 8, 9), 0.2)
    with pytest.raises(ValueError, match="sigma must be positive"):
        network(torch.zeros(2, 1, 8, 8), 0.0)
