"""The ERE and its gradient against closed forms (M2, M3), quadrature (Figure 1) and finite differences."""

import numpy as np
import pytest
import torch
from cases import tensor
from closed_forms import (
    gaussian_denoiser,
    gaussian_ere,
    gaussian_ere_gradient,
    truncated_mixture_denoiser,
    truncated_mixture_ere,
)
from nets import conv_denoiser
from torch.autograd import gradcheck, gradgradcheck

import pursamere as ps
from pursamere.objective import ere_gradient, score_gradient

TAU = 0.7
NOISE = ps.GaussianNoise(draws=2)


def summed(terms):
    return terms.per_draw.sum(0) + (0 if terms.direct is None else terms.direct)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_gaussian_closed_form(sigma):
    """M3. With antithetic draws only the noise's second moment is sampled: tolerances are its standard error."""
    x = tensor(0, 3, 2, 4, 4)
    noise = ps.GaussianNoise(seed=1, draws=20_000)
    exact = gaussian_ere(x, sigma, TAU)
    got = ps.expected_reconstruction_error(gaussian_denoiser(TAU), x, sigma, noise)
    assert got.shape == (3,)
    assert float(((got - exact) / exact).abs().max()) < 0.01
    # For this denoiser the antithetic estimator's gradient is exact, whatever the draws.
    gradient = summed(ere_gradient(gaussian_denoiser(TAU), x, sigma, ps.GaussianNoise(draws=2)))
    torch.testing.assert_close(gradient, gaussian_ere_gradient(x, sigma, TAU), rtol=1e-12, atol=1e-14)


def predictions(tau):
    """One Gaussian denoiser in its three guises."""
    return {
        "denoised": gaussian_denoiser(tau),
        "score": ps.denoisers.from_score(lambda y, sigma: -y / (tau**2 + sigma**2)),
        "noise": ps.denoisers.from_noise_prediction(lambda y, sigma: y * sigma / (tau**2 + sigma**2)),
    }


@pytest.mark.parametrize("kind", ["score", "noise"])
def test_predictions_of_score_and_noise_give_the_same_error_and_gradients(kind):
    x, noise, sigma = tensor(0, 2, 1, 5, 5), ps.GaussianNoise(draws=6), 0.3
    plain, other = predictions(TAU)["denoised"], predictions(TAU)[kind]
    for gradient in (ere_gradient, score_gradient):
        want, got = (gradient(denoiser, x, sigma, noise, with_ere=True) for denoiser in (plain, other))
        torch.testing.assert_close(got.ere, want.ere, rtol=1e-10, atol=0)
        torch.testing.assert_close(summed(got), summed(want), rtol=0, atol=1e-12)
    assert ere_gradient(other, x, sigma, noise).direct is None


def test_score_direction_is_twice_the_mean_residual():
    """M10: with antithetic draws -2 sigma^2 times the mean score."""
    x, noise, sigma = tensor(0, 2, 1, 3, 3), ps.GaussianNoise(draws=4), 0.4
    bank = noise.sample((1, 3, 3), dtype=torch.float64)
    score = -(x + sigma * bank[:, None]) / (TAU**2 + sigma**2)
    got = summed(score_gradient(gaussian_denoiser(TAU), x, sigma, noise))
    torch.testing.assert_close(got, -2 * sigma**2 * score.mean(0), rtol=0, atol=1e-12)


def test_small_sigma_expansion():
    """M2 on a mixture: R = sigma^2 d + sigma^4 (2 div s + ||s||^2) + O(sigma^6), s the score of the density."""
    means = tensor(0, 3, 1, 2, 2)
    mixture = ps.denoisers.GaussianMixture(means, 0.5)
    x = tensor(1, 1, 1, 2, 2)

    def log_density(point):
        square = (point - means).flatten(1).square().sum(1)
        return torch.logsumexp(-square / (2 * 0.5**2), 0)

    score = torch.autograd.functional.jacobian(log_density, x)
    hessian = torch.autograd.functional.hessian(log_density, x).reshape(4, 4)
    second_order = 2 * hessian.trace() + score.square().sum()
    # R - sigma^2 mean_k ||xi_k||^2 removes the leading term draw by draw.
    noise = ps.GaussianNoise(draws=200_000)
    norm = noise.sample((4,), dtype=torch.float64).square().sum(1).mean()
    for sigma, tolerance in ((0.1, 0.1), (0.05, 0.03)):
        ere = ps.expected_reconstruction_error(mixture, x, sigma, noise)[0]
        # -2 sigma^3 E<xi, s> vanishes pairwise, and the divergence comes with E xi xi^T, sampled to half a per cent.
        assert float((ere - sigma**2 * norm) / sigma**4 / second_order) == pytest.approx(1, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "minima"), [(0.1, (0.221, 0.779)), (0.05, (0.247, 0.753))])
def test_minima_of_figure_1(sigma, minima):
    """M5: where the ERE of the truncated mixture is smallest, by our estimator, by quadrature, and as published."""
    grid = np.linspace(0.02, 0.98, 961)
    exact = truncated_mixture_ere(grid, sigma)
    x = torch.from_numpy(grid).reshape(-1, 1, 1, 1)
    noise = ps.GaussianNoise(seed=0, draws=4_000)
    estimate = ps.expected_reconstruction_error(truncated_mixture_denoiser, x, sigma, noise, micro_batch=31).numpy()
    assert np.abs(estimate - exact).max() < 0.03 * exact.max()
    for half, minimum in zip((grid < 0.5, grid > 0.5), minima, strict=True):
        assert grid[half][exact[half].argmin()] == pytest.approx(minimum, abs=0.0015)
        assert grid[half][estimate[half].argmin()] == pytest.approx(minimum, abs=0.004)


def nonlinear(y, sigma):
    """A smooth denoiser without structure."""
    mixed = y + 0.3 * y.roll(1, dims=-1) * y.flip(-2)
    return mixed.tanh() / (1 + sigma)


def test_gradient_terms_match_automatic_differentiation():
    x, noise = tensor(0, 2, 1, 3, 3).requires_grad_(), ps.GaussianNoise(draws=4)
    ere = ps.expected_reconstruction_error(nonlinear, x, 0.3, noise)
    (want,) = torch.autograd.grad(ere.sum(), x)
    terms = ere_gradient(nonlinear, x.detach(), 0.3, noise, with_ere=True)
    torch.testing.assert_close(summed(terms), want, rtol=0, atol=1e-13)
    torch.testing.assert_close(terms.ere, ere.detach(), rtol=1e-13, atol=0)


def test_differentiable_twice():
    x, noise = tensor(0, 2, 1, 2, 2).requires_grad_(), ps.GaussianNoise(draws=4)

    def objective(point):
        return ps.expected_reconstruction_error(nonlinear, point, 0.3, noise)

    assert gradcheck(objective, x)
    assert gradgradcheck(objective, x)


def test_bad_denoisers_are_named():
    x, noise = tensor(0, 1, 1, 2, 2), ps.GaussianNoise(draws=2)
    for result, message in (
        (lambda y, s: y[:, :, :1], r"must return the shape that it was given, torch.Size\(\[2, 1, 2, 2\]\)"),
        (lambda y, s: y.float(), "must return the dtype that it was given, torch.float64, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            ps.expected_reconstruction_error(result, x, 0.1, noise)
    with pytest.raises(TypeError, match=r"must return a torch.Tensor, got tuple"):
        ps.expected_reconstruction_error(lambda y, s: (y,), x, 0.1, noise)
    with pytest.raises(ValueError, match="must be differentiable in its input, but its result does not depend on it"):
        ere_gradient(torch.no_grad()(gaussian_denoiser(1.0)), x, 0.1, noise)
    with pytest.raises(ValueError, match=r"x must have 4 dimensions, got shape \(2, 2\)"):
        ps.expected_reconstruction_error(nonlinear, torch.zeros(2, 2), 0.1, noise)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 0"):
        ps.expected_reconstruction_error(nonlinear, x, 0, noise)


@pytest.mark.parametrize("denoiser", [torch.no_grad()(conv_denoiser()), lambda y, sigma: y.detach()])
def test_the_error_of_a_detached_denoiser_has_no_gradient(denoiser):
    """The rest of the gradient, that of x itself, would pass for the whole."""
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    assert ps.expected_reconstruction_error(denoiser, x, 0.2, NOISE).shape == (2,)
    with pytest.raises(ValueError, match="denoiser must be differentiable"):
        ps.expected_reconstruction_error(denoiser, x.requires_grad_(), 0.2, NOISE)


@pytest.mark.parametrize(
    "make",
    [
        lambda denoiser: ps.Purifier(denoiser, sigma=0.2, radius=0.2, steps=1),
        lambda denoiser: ps.Purifier(denoiser, sigma=0.2, radius=0.2, steps=1, direction="score"),
        lambda denoiser: ps.baselines.DiffPure(denoiser, steps=2),
        lambda denoiser: ps.baselines.ScoreOptO(denoiser, steps=1),
    ],
)
def test_a_denoiser_that_writes_into_its_input_is_refused(make):
    purifier = make(lambda y, sigma: y.mul_(2).sub_(1))
    with pytest.raises(ValueError, match="denoiser must not write into its input"):
        purifier(tensor(0, 1, 1, 4, 4, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_dtype_than_the_network(dtype):
    purifier = ps.Purifier(conv_denoiser(), sigma=0.2, radius=0.2, steps=1)
    with pytest.raises(TypeError, match=rf"the denoiser can't take {dtype} images: convert them"):
        purifier(tensor(0, 1, 1, 4, 4, dtype=dtype))


def test_a_network_in_training_mode_is_refused():
    network = torch.nn.Sequential(torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match="denoiser must be in evaluation mode"):
        ps.expected_reconstruction_error(network, tensor(0, 1, 1, 4, 4), 0.2, NOISE)
