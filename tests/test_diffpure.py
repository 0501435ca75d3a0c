"""DiffPure against the distribution that it samples, where that is known in closed form or by quadrature."""

import math

import diffusion_families as families
import numpy as np
import pytest
import torch
from cases import tensor
from closed_forms import gaussian_prior
from nets import conv_denoiser, fixed_weights

import pursamere as ps
from pursamere.baselines import DiffPure, PublishedDiffPure
from pursamere.baselines._randomness import derived, of_image
from pursamere.stepping import StepMode

MU, TAU, SIGMA = 0.5, 0.05, 0.1


def unclipped(model, x0):
    """The result before it is clipped to [0, 1], which hides how far it spreads."""
    return model._last(StepMode(model.noise, projected=False), x0)[0]


def flat(value, side=512):
    """One image of one gray, so that every pixel is a sample."""
    return torch.full((1, 1, side, side), value, dtype=torch.float64)


# A Gaussian prior. X given X + sigma Xi = y has mean mu + k (y - mu) and variance k sigma^2, k = tau^2 / (tau^2 +
# sigma^2). The purifier's y is x0 + sigma xi, so the mean of its result has the slope k in x0, and its variance is
# k sigma^2 + (k sigma)^2.


def slope_and_spread(model, side=512):
    low, high = (unclipped(model, flat(value, side)) for value in (0.4, 0.6))
    return float((high - low).mean()) / 0.2, float(high.std(correction=0))


def test_levels_far_apart():
    """Where a part of the noise rounds to none."""
    model = DiffPure(conv_denoiser(), sigma_max=1.0, sigma_min=1e-9, steps=2)
    assert model(tensor(0, 1, 1, 4, 4, dtype=torch.float32)).isfinite().all()


@pytest.mark.parametrize("tau", [0.01, 0.03, 0.1, 0.3, 1.0])
def test_the_defaults_meet_a_gaussian_prior_within_three_percent(tau):
    model = DiffPure(gaussian_prior(MU, tau))
    assert model.network_passes.total == 20
    slope, spread = slope_and_spread(model)
    k = tau**2 / (tau**2 + model.sigma_max**2)
    assert slope == pytest.approx(k, rel=0.001)
    assert spread == pytest.approx(model.sigma_max * math.sqrt(k + k**2), rel=0.03)


@pytest.mark.parametrize(("solver", "short"), [("euler", 0.17), ("corrected", 0.08)])
def test_how_much_spread_ten_steps_lose(solver, short):
    model = DiffPure(gaussian_prior(MU, 0.25), solver=solver, steps=10)
    k = 0.25**2 / (0.25**2 + model.sigma_max**2)
    assert 1 - slope_and_spread(model)[1] / (model.sigma_max * math.sqrt(k + k**2)) == pytest.approx(short, abs=0.01)


@pytest.mark.parametrize("solver", ["corrected", "euler", "heun"])
def test_diffpure_samples_the_posterior(solver):
    x0 = flat(0.55, 96)
    k = TAU**2 / (TAU**2 + SIGMA**2)
    mean, variance = MU + k * (0.55 - MU), k * SIGMA**2 + (k * SIGMA) ** 2
    result = DiffPure(gaussian_prior(MU, TAU), sigma_max=SIGMA, steps=60, solver=solver)(x0)
    assert float(result.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance) / 96)
    assert float(result.var()) == pytest.approx(variance, rel=0.06)  # four standard errors: 4 sqrt(2) / 96


@pytest.mark.parametrize("solver", ["corrected", "heun"])
@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
def test_diffpure_keeps_the_distribution(stochasticity, solver):
    """Images of the prior stay so at any stochasticity, also in the few steps in which errors are small."""
    x0 = MU + TAU * ps.GaussianNoise(seed=50, draws=1, antithetic=False).sample((1, 96, 96), dtype=torch.float64)
    steps = 12 if solver == "heun" else 20
    model = DiffPure(gaussian_prior(MU, TAU), sigma_max=SIGMA, steps=steps, solver=solver, stochasticity=stochasticity)
    result = model(x0)
    assert float(result.mean()) == pytest.approx(MU, abs=4 * TAU / 96)
    assert float(result.std()) == pytest.approx(TAU, rel=0.035)


@pytest.mark.parametrize("solver", ["corrected", "heun"])
@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
def test_how_much_of_the_image_is_remembered(stochasticity, solver):
    """The ODE maps the noisy image to the prior by its scale; the SDE forgets all but the posterior's mean."""
    offset = TAU * ps.GaussianNoise(seed=50, draws=1, antithetic=False).sample((1, 96, 96), dtype=torch.float64)
    model = DiffPure(gaussian_prior(MU, TAU), sigma_max=SIGMA, steps=60, solver=solver, stochasticity=stochasticity)
    kept = float(((model(MU + offset) - MU) * offset).mean() / offset.square().mean())
    k = TAU**2 / (TAU**2 + SIGMA**2)
    assert kept == pytest.approx(k ** ((1 + stochasticity) / 2), abs=0.045)  # four standard errors


def test_the_order_of_the_solvers():
    """The probability flow's exact solution is x0 = mu + (y - mu) tau / sqrt(tau^2 + sigma^2)."""
    x0 = tensor(0, 1, 1, 8, 8, low=0.45, high=0.55)
    y = x0 + SIGMA * derived(ps.GaussianNoise(seed=0), 0).sample((1, 8, 8), dtype=x0.dtype)
    exact = MU + (y - MU) * TAU / math.hypot(TAU, SIGMA)
    order = {}
    for solver in ("euler", "heun", "corrected"):
        errors = []
        for steps in (40, 80, 160):
            model = DiffPure(
                gaussian_prior(MU, TAU), sigma_max=SIGMA, sigma_min=1e-5, steps=steps, solver=solver, stochasticity=0
            )
            errors.append(float((model(x0) - exact).norm()))
        order[solver] = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert order["euler"] == pytest.approx([1, 1], abs=0.15)
    assert order["heun"] == pytest.approx([2, 2], abs=0.2)
    assert order["corrected"] == pytest.approx([2, 2], abs=0.2)


def test_the_order_between_the_ode_and_the_sde():
    """The slope is k^((1 + lambda) / 2): a step that is right for lambda 0 and 1 alone loses an order."""
    exact = (TAU**2 / (TAU**2 + SIGMA**2)) ** 0.75
    errors = []
    for steps in (40, 80, 160):
        model = DiffPure(gaussian_prior(MU, TAU), sigma_max=SIGMA, sigma_min=1e-5, steps=steps, stochasticity=0.5)
        errors.append(abs(slope_and_spread(model, side=1)[0] - exact))
    assert [math.log2(errors[i] / errors[i + 1]) for i in range(2)] == pytest.approx([2, 2], abs=0.2)


# A prior that is not Gaussian: a pixel is near 0.3 or near 0.7.


def two_peaks(y, sigma):
    spread = 0.05**2
    away = [(y - mean).square() / (2 * (spread + sigma**2)) for mean in (0.3, 0.7)]
    second = torch.sigmoid(away[0] - away[1])
    means = [(spread * y + sigma**2 * mean) / (spread + sigma**2) for mean in (0.3, 0.7)]
    return (1 - second) * means[0] + second * means[1]


def test_the_defaults_sample_a_mixture():
    """Against quadrature: the distribution of X given X + sigma Xi = x0 + sigma xi, over xi."""
    x0, model = 0.42, DiffPure(two_peaks, sigma_max=0.2)
    grid, y = np.linspace(0.0, 1.0, 1001), np.linspace(-1.0, 2.0, 1501)
    prior = sum(np.exp(-0.5 * ((grid - mean) / 0.05) ** 2) for mean in (0.3, 0.7))
    given_y = prior * np.exp(-0.5 * ((y[:, None] - grid) / 0.2) ** 2)
    given_y /= given_y.sum(1, keepdims=True)
    weight = np.exp(-0.5 * ((y - x0) / 0.2) ** 2)
    density = weight @ given_y / weight.sum()
    result = np.sort(unclipped(model, flat(x0)).numpy().ravel())
    below = np.searchsorted(result, grid) / len(result)
    assert np.abs(below - np.cumsum(density)).max() < 0.01
    euler = np.sort(unclipped(DiffPure(two_peaks, sigma_max=0.2, solver="euler"), flat(x0)).numpy().ravel())
    assert np.abs(np.searchsorted(euler, grid) / len(euler) - np.cumsum(density)).max() > 0.02


def test_noise_levels():
    model = DiffPure(two_peaks, sigma_max=0.3, sigma_min=0.01, rho=3, steps=4)
    levels = torch.tensor(model.sigmas())
    assert levels[0] == torch.tensor(0.3)
    assert float(levels[3]) == pytest.approx(0.01)
    assert levels[-1] == 0
    torch.testing.assert_close(levels[:4] ** (1 / 3), torch.linspace(0.3 ** (1 / 3), 0.01 ** (1 / 3), 4))
    assert DiffPure(two_peaks, steps=1).sigmas() == [0.17, 0.0]


# The published discretization.


def published(score_fn, sde, x0, noises, times):
    """The authors' program in its own coordinates: images in [-1, 1], Euler-Maruyama by the times in between.

    With the noises of the purifier, and the initial ones by the continuous equation.
    """

    def rate(t):
        return sde.beta_min + t * (sde.beta_max - sde.beta_min)

    mean, std = sde.marginal_prob(2 * x0 - 1, torch.tensor([times[0]], dtype=x0.dtype))
    x = mean + std[:, None, None, None] * noises[0]
    for t, until, noise in zip(times[:-1], times[1:], noises[1:], strict=True):
        score = score_fn(x, torch.full((len(x),), t, dtype=x.dtype))
        drift = -0.5 * rate(t) * x - rate(t) * score
        x = x - drift * (t - until) + math.sqrt(rate(t) * (t - until)) * noise
    return (x + 1) / 2


@pytest.mark.parametrize("steps", [100, 7])
def test_the_published_steps(steps):
    """A network of a VP SDE is asked at the published times, and its answers lead to the published image."""
    times = []

    class Network(families.TinyUNet):
        def forward(self, x, labels):
            times.append(float(labels[0]) / 999)
            return super().forward(x, labels)

    sde, network = families.VPSDE(), fixed_weights(Network(1, 1)).double()
    score_fn = families.get_score_fn(sde, network)
    model = PublishedDiffPure(ps.denoisers.from_score_sde(score_fn, sde, centered=True), steps=steps)
    x0 = tensor(0, 1, 1, 6, 6)
    model(x0)  # the first call checks the network too
    times.clear()
    result = unclipped(model, x0)
    want = [*np.linspace(0.1, 0.0, steps + 1)[:-1], 1e-5]
    assert times == pytest.approx(want[:-1], rel=1e-9)
    noises = [derived(model.noise, t).sample((1, 6, 6), dtype=x0.dtype) for t in range(steps + 1)]
    torch.testing.assert_close(result, published(score_fn, sde, x0, noises, want), rtol=0, atol=1e-9)


def test_the_published_defaults():
    model = PublishedDiffPure(gaussian_prior(MU, TAU))
    assert (model.time, model.steps, model.beta_min, model.beta_max) == (0.1, 100, 0.1, 20.0)
    assert model.network_passes.total == 100


def test_the_published_steps_converge_to_the_posterior():
    model = PublishedDiffPure(gaussian_prior(MU, 0.1), steps=200)
    slope, spread = slope_and_spread(model, side=128)
    sigma = math.sqrt(math.exp(0.1 * 0.1 + 19.9 * 0.1**2 / 2) - 1) / 2
    k = 0.1**2 / (0.1**2 + sigma**2)
    assert slope == pytest.approx(k, rel=0.02)
    assert spread == pytest.approx(sigma * math.sqrt(k + k**2), rel=0.02)


# Noise that differs between images.

EITHER = pytest.mark.parametrize("make", [DiffPure, PublishedDiffPure])
IDS = torch.tensor([4, 2**40, 0, 4, 9])


def gradient_of(model, x, ids, mode="exact"):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((model(leaf, gradient=mode, image_ids=ids) * tensor(7, *x.shape[1:])).sum(), leaf)[0]


@EITHER
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_image_and_its_id_have_the_same_bits_in_any_batch(make, micro_batch):
    model = make(conv_denoiser(), steps=3, micro_batch=micro_batch)
    x = tensor(0, 5, 1, 6, 6, dtype=torch.float32)
    whole, gradient = model(x, image_ids=IDS), gradient_of(model, x, IDS)
    for rows in ([4], [3, 1], [2, 2, 0], [3, 1, 0, 2, 4]):
        assert torch.equal(model(x[rows], image_ids=IDS[rows]), whole[rows])
        assert torch.equal(gradient_of(model, x[rows], IDS[rows]), gradient[rows])
    assert model(x[:0], image_ids=IDS[:0]).shape == (0, 1, 6, 6)


@EITHER
def test_the_noise_of_an_image_is_that_of_its_id(make):
    """Bit for bit that of a model in which all images share it, and independent of that of another id."""
    x = flat(0.45, 64).expand(5, -1, -1, -1)
    model = make(gaussian_prior(MU, TAU), steps=3)
    result = model(x, image_ids=IDS)
    for row, image_id in enumerate(IDS.tolist()):
        alone = make(gaussian_prior(MU, TAU), steps=3, noise=of_image(model.noise, image_id))
        assert torch.equal(result[row : row + 1], alone(x[:1]))
    assert torch.equal(result[0], result[3])
    correlations = torch.corrcoef(result[[0, 1, 2, 4]].flatten(1))
    assert float((correlations - torch.eye(4)).abs().max()) < 4 / 64


@EITHER
def test_gradients_with_noise_of_every_image(make):
    x = tensor(0, 5, 1, 4, 4, low=0.3, high=0.7)
    for micro_batch in (1, 4):
        model = make(two_peaks, steps=3, micro_batch=micro_batch)
        want = gradient_of(model, x, IDS, "unrolled")
        torch.testing.assert_close(gradient_of(model, x, IDS), want)
        assert not torch.allclose(want, gradient_of(model, x, None, "unrolled"))


@EITHER
def test_fresh_noise_of_every_image(make):
    x = tensor(0, 5, 1, 4, 4)
    model = make(two_peaks, steps=3, fresh_noise=True)
    first, second = (model(x, image_ids=IDS) for _ in range(2))
    assert not torch.equal(first, second)
    model.reset()
    assert torch.equal(model(x, image_ids=IDS), first)
    model.reset(8)
    assert not torch.equal(model(x, image_ids=IDS), first)


@EITHER
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 1], TypeError, "image_ids must be a torch.Tensor, got list"),
        (torch.tensor([0.0, 1.0]), TypeError, "image_ids must hold integers, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "image_ids must hold integers, got torch.bool"),
        (torch.tensor([[0, 1]]), ValueError, "image_ids must have 1 dimension"),
        (torch.tensor([0, 1, 2]), ValueError, "image_ids must have one entry for each of 2 images, got 3"),
        (torch.tensor([0, -1]), ValueError, "image_ids must be at least 0, got -1"),
    ],
)
def test_bad_ids(make, ids, error, message):
    model = make(two_peaks, steps=2, fresh_noise=True)
    with pytest.raises(error, match=message):
        model(tensor(0, 2, 1, 4, 4), image_ids=ids)
    assert model._calls == 0
