"""Adapters in the objective: the network alone, its units converted by the ops, against ``denoiser(y, sigma)``."""

import pytest
import torch
from cases import tensor
from test_denoisers_adapters import GAUSSIANS, random_edm

import pursamere as ps
from pursamere.denoisers.protocol import network_call_of
from pursamere.objective import ere_gradient, score_gradient

NOISE, SIGMA = ps.GaussianNoise(seed=1, draws=4), 0.3
X = tensor(0, 3, 2, 4, 5)


def plainly(denoiser):
    """The same denoiser, of which nothing is known but how to call it."""
    return lambda y, sigma: denoiser(y, sigma)


def summed(terms):
    return terms.per_draw.sum(0) + (0 if terms.direct is None else terms.direct)


def figures(denoiser, x):
    """The error, its gradient by autograd, both directions, and the derivatives of both along a fixed direction."""
    x = x.clone().requires_grad_()
    ere = ps.expected_reconstruction_error(denoiser, x, SIGMA, NOISE)
    results = [ere, *torch.autograd.grad(ere.sum(), x)]
    for direction in (ere_gradient, score_gradient):
        terms = direction(denoiser, x.detach(), SIGMA, NOISE, with_ere=True)
        differentiated = summed(direction(denoiser, x, SIGMA, NOISE, create_graph=True))
        weight = tensor(7, *x.shape, dtype=x.dtype, low=-1)
        results += [summed(terms), terms.ere, *torch.autograd.grad((weight * differentiated).sum(), x)]
    return [result.detach() for result in results]


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_the_objective_and_its_derivatives_are_those_of_the_denoiser(name, dtype, tolerance):
    denoiser = GAUSSIANS[name]()
    assert denoiser.network_call(SIGMA, dtype) is not None
    for got, want in zip(figures(denoiser, X.to(dtype)), figures(plainly(denoiser), X), strict=True):
        assert got.dtype == dtype
        scale = max(1.0, float(want.abs().max()))
        assert float((got.double() - want).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("name", ["edm", "diffusers v_prediction"])
def test_purification_and_its_gradient_are_those_of_the_denoiser(name, direction):
    """Also where the op that makes an image makes its noisy images too."""
    options = {"sigma": SIGMA, "radius": 0.3, "norm": "l2", "steps": 3, "noise": NOISE, "direction": direction}
    results = []
    for denoiser in (GAUSSIANS[name](), plainly(GAUSSIANS[name]())):
        x, purifier = X.clone().requires_grad_(), ps.Purifier(denoiser, **options)
        purified = purifier(x)
        results.append((purified.detach(), *torch.autograd.grad((tensor(3, *X.shape) * purified).sum(), x)))
        single = ps.Purifier(denoiser, **options)(X.float())
        assert float((single - purified.detach()).abs().max()) <= 1e-5
    for got, want in zip(*results, strict=True):
        assert float((got - want).norm()) <= 1e-9 * float(want.norm())


@pytest.mark.parametrize("network", [torch.float16, torch.bfloat16], ids=str)
def test_a_network_of_half_precision_is_given_its_own_dtype(network):
    denoiser, x = random_edm().to(network), tensor(0, 2, 1, 8, 8, dtype=torch.float32)
    call = denoiser.network_call(SIGMA, torch.float32)
    assert call.dtype == network
    limit = 64 * torch.finfo(network).eps
    for got, want in zip(figures(denoiser, x), figures(plainly(random_edm()), x), strict=True):
        assert got.dtype == want.dtype
        assert float((got - want).norm()) <= limit * float(want.norm())


@pytest.mark.parametrize(
    ("image", "network"),
    [(torch.float64, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float64)],
    ids=str,
)
def test_other_dtypes_are_converted_by_the_denoiser(image, network):
    denoiser, x = random_edm().to(network), tensor(0, 2, 1, 8, 8, dtype=image)
    assert denoiser.network_call(SIGMA, image) is None
    got, want = (summed(ere_gradient(d, x, SIGMA, NOISE)) for d in (denoiser, plainly(denoiser)))
    assert torch.equal(got, want)


def test_a_network_may_answer_in_float32():
    class Wide(torch.nn.Module):
        sigma_min, sigma_max, label_dim = 0.0, float("inf"), 0

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, sigma):
            return (self.scale * x).float()

    denoiser, x = ps.denoisers.from_edm(Wide().half()), tensor(0, 2, 1, 8, 8, dtype=torch.float32)
    for got, want in zip(figures(denoiser, x), figures(plainly(denoiser), x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)


def test_the_noise_level_is_checked():
    denoiser = random_edm()
    with pytest.raises(ValueError, match="sigma must be in the range of the network"):
        ere_gradient(denoiser, tensor(0, 2, 1, 8, 8, dtype=torch.float32), 1e4, NOISE)


def test_hooks_and_overridden_forward_are_not_bypassed():
    x, noise = tensor(0, 2, 1, 5, 5, dtype=torch.float32), ps.GaussianNoise(draws=2)
    denoiser = random_edm()
    plain = score_gradient(denoiser, x, 0.2, noise).per_draw
    assert denoiser.network_call(0.2, x.dtype) is not None
    denoiser.register_forward_hook(lambda module, arguments, output: 0.5 * output)
    assert not torch.allclose(score_gradient(denoiser, x, 0.2, noise).per_draw, plain)

    class Halved(type(denoiser)):
        def forward(self, y, sigma):
            return 0.5 * super().forward(y, sigma)

    compiled = torch.compile(random_edm(), backend="eager")  # which has its methods
    assert network_call_of(compiled, 0.2, x.dtype).predict is compiled

    halved = random_edm()
    halved.__class__ = Halved
    assert not torch.allclose(score_gradient(halved, x, 0.2, noise).per_draw, plain)
