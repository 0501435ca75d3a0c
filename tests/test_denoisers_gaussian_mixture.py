import numpy as np
import pytest
import torch

from pursamere.denoisers import GaussianMixture

SHAPE = (1, 2, 3)


def parameters(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    stds = 0.05 + 0.3 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    y = torch.rand(7, *SHAPE, generator=generator, dtype=torch.float64)
    return means, stds, weights, y


def score_form(y, means, stds, weights, sigma):
    """y + sigma^2 * score, the score by automatic differentiation of the log density of the noisy mixture."""
    y = y.clone().requires_grad_()
    variances = stds.square() + sigma**2
    normal = torch.distributions.Normal(means, variances.sqrt())
    log_density = (normal.log_prob(y[:, None]).flatten(2).sum(2) + weights.log()).logsumexp(1)
    (score,) = torch.autograd.grad(log_density.sum(), y)
    return (y + sigma**2 * score).detach()


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.5])
def test_posterior_mean_by_quadrature(sigma):
    means, stds, weights = [0.2, 0.45, 0.8], [0.1, 0.03, 0.2], [0.5, 0.2, 1.3]
    y = np.linspace(-0.5, 1.5, 41)
    x = np.linspace(-3.0, 4.0, 70_001)
    prior = sum(w / s * np.exp(-((x - m) ** 2) / (2 * s**2)) for m, s, w in zip(means, stds, weights, strict=True))
    likelihood = np.exp(-((y[:, None] - x) ** 2) / (2 * sigma**2))
    expected = (likelihood @ (prior * x)) / (likelihood @ prior)
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (means, stds, weights)]
    denoiser = GaussianMixture(as_tensor[0].view(3, 1, 1, 1), *as_tensor[1:])
    actual = denoiser(torch.from_numpy(y).view(-1, 1, 1, 1), sigma).flatten().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.2, 2.0])
def test_diagonal_mixture_follows_tweedie(sigma):
    means, stds, weights, y = parameters()
    actual = GaussianMixture(means, stds, weights)(y, sigma)
    torch.testing.assert_close(actual, score_form(y, means, stds, weights, sigma), rtol=0, atol=1e-11)


@pytest.mark.parametrize("tau", [0.3, 2.0])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_single_gaussian(tau, sigma):
    *_, y = parameters()
    actual = GaussianMixture(torch.zeros(1, *SHAPE, dtype=torch.float64), tau)(y, sigma)
    torch.testing.assert_close(actual, y * tau**2 / (tau**2 + sigma**2), rtol=1e-14, atol=1e-15)


def test_diagonal_equals_isotropic_when_the_stds_are_equal():
    means, _, weights, y = parameters()
    stds = torch.tensor([0.1, 0.2, 0.3, 0.15], dtype=torch.float64)
    isotropic = GaussianMixture(means, stds, weights)(y, 0.2)
    diagonal = GaussianMixture(means, stds.view(-1, 1, 1, 1).expand_as(means), weights)(y, 0.2)
    torch.testing.assert_close(diagonal, isotropic, rtol=0, atol=1e-15)
    scalar = GaussianMixture(means, 0.1, weights)(y, 0.2)
    constant = GaussianMixture(means, torch.full((4,), 0.1, dtype=torch.float64), weights)(y, 0.2)
    torch.testing.assert_close(scalar, constant, rtol=0, atol=1e-15)


def test_huge_sigma_gives_the_mean_of_the_prior():
    means, stds, _, y = parameters()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    expected = torch.einsum("m,mchw->chw", weights / 10, means).expand_as(y)
    torch.testing.assert_close(GaussianMixture(means, stds, weights)(y, 1e200), expected, rtol=0, atol=1e-14)


def test_weights_are_normalized_and_may_vanish():
    means, stds, weights, y = parameters()
    expected = GaussianMixture(means, stds, weights)(y, 0.2)
    torch.testing.assert_close(GaussianMixture(means, stds, 40 * weights)(y, 0.2), expected, rtol=0, atol=1e-14)
    weights[2] = 0.0
    kept = [0, 1, 3]
    y.requires_grad_()
    actual = GaussianMixture(means, stds, weights)(y, 0.2)
    expected = GaussianMixture(means[kept], stds[kept], weights[kept])(y, 0.2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    assert bool(torch.isfinite(torch.autograd.grad(actual.sum(), y)[0]).all())


def test_gradcheck():
    means, stds, weights, y = parameters()
    denoiser = GaussianMixture(means, stds, weights)
    y = y[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda y: denoiser(y, 0.2), (y,))
    assert torch.autograd.gradgradcheck(lambda y: denoiser(y, 0.2), (y,))


@pytest.mark.parametrize("sigma", [1e-200, 1e-3, 0.1])
def test_std_of_zero_and_far_queries(sigma):
    means, _, weights, y = parameters()
    denoiser = GaussianMixture(means, 0.0, weights)
    for far in (1e4 * (y - 0.5), 1e4 * (y - 0.5).float()):
        far.requires_grad_()
        denoised = denoiser(far, sigma)
        nearest = (far.double()[:, None] - means).square().flatten(2).sum(2).argmin(1)
        torch.testing.assert_close(denoised.double(), means[nearest], rtol=0, atol=1e-6)
        assert bool(torch.isfinite(torch.autograd.grad(denoised.sum(), far)[0]).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_of_y(dtype):
    means, stds, weights, y = parameters()
    y = y.to(dtype)
    denoiser = GaussianMixture(means.float(), stds.float(), weights.float())
    expected = denoiser(y.double(), 0.2).to(dtype)
    assert torch.equal(denoiser(y, 0.2), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(denoiser(y, 0.2), expected)


def test_later_changes_of_the_arguments_have_no_effect():
    means, stds, weights, y = parameters()
    denoiser = GaussianMixture(means, stds, weights)
    expected = denoiser(y, 0.2)
    for argument in (means, stds, weights):
        argument.zero_()
    assert torch.equal(denoiser(y, 0.2), expected)
    assert denoiser(y[:0], 0.2).shape == (0, *SHAPE)
    assert repr(denoiser) == "GaussianMixture(components=4, shape=(1, 2, 3))"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"means": 0.5}, TypeError, "means must be a torch.Tensor, got float"),
        ({"means": torch.zeros(4)}, ValueError, r"means must have 4 dimensions, got shape \(4,\)"),
        ({"means": torch.zeros(0, 1, 2, 3)}, ValueError, r"means must hold at least one image.*\(0, 1, 2, 3\)"),
        ({"means": torch.full((4, 1, 2, 3), torch.nan)}, ValueError, "means must be finite, got NaN or infinity"),
        ({"stds": -0.1}, ValueError, "stds must be at least 0 and finite, got -0.1"),
        ({"stds": "wide"}, TypeError, "stds must be a real number, got str"),
        ({"stds": torch.full((4,), -0.5)}, ValueError, "stds must be at least 0, got a minimum of -0.5"),
        ({"stds": torch.full((4,), torch.nan)}, ValueError, "stds must be finite, got NaN or infinity"),
        ({"stds": torch.ones(4, dtype=torch.int64)}, TypeError, "stds must have a floating dtype.*torch.int64"),
        ({"stds": torch.ones(3)}, ValueError, r"stds must.*\(4,\) or \(4, 1, 2, 3\) to fit means, got \(3,\)"),
        ({"stds": torch.ones(4, device="meta")}, ValueError, "stds must be on the device of means, cpu, got meta"),
        ({"weights": [1.0]}, TypeError, "weights must be a torch.Tensor, got list"),
        ({"weights": torch.ones(5)}, ValueError, r"weights must have the shape \(4,\) to fit means, got \(5,\)"),
        ({"weights": torch.zeros(4)}, ValueError, "weights must have a positive sum, got 0"),
        ({"weights": -torch.ones(4)}, ValueError, "weights must be at least 0, got a minimum of -1"),
    ],
)
def test_bad_construction(changes, error, message):
    arguments = {"means": torch.zeros(4, *SHAPE), "stds": 0.1, "weights": None, **changes}
    with pytest.raises(error, match=message):
        GaussianMixture(**arguments)
