"""The baselines that run Adam against torch.optim.Adam, with losses written here."""

import math

import pytest
import torch
from baseline_cases import NOISE, B, gradient_of, mixture
from cases import tensor
from nets import conv_denoiser

import pursamere as ps
from pursamere.baselines._randomness import derived, uniform


def mean_square(a, b):
    return (a - b).square().mean()


def noise_at(x, *purpose):
    return derived(NOISE, *purpose).sample(x.shape[1:], dtype=x.dtype)


def likelihood_loss(model, t, x):
    sigma = uniform(NOISE, t, 0, low=model.sigma_min, high=model.sigma_max)
    return mean_square(model.denoiser(x + sigma * noise_at(x, t, 1), sigma), x)


def project(moved, x0, radius, norm):
    offset = moved - x0
    if norm == "linf":
        return (x0 + offset.clamp(-radius, radius)).clamp(0, 1)
    return (x0 + offset * (radius / offset.norm()).clamp(max=1)).clamp(0, 1)


def optimize(start, loss, steps, learning_rate, projection=lambda x: x):
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    for t in range(steps):
        optimizer.zero_grad()
        loss(t, x).backward()
        optimizer.step()
        with torch.no_grad():
            x.copy_(projection(x))
    return x.detach()


@pytest.mark.parametrize("regularization", [0.0, 2.0])
def test_scoreopt_o_is_adam(regularization):
    denoiser, x0 = conv_denoiser(dtype=torch.float64), tensor(0, 1, 1, 5, 5)
    model = B.ScoreOptO(denoiser, sigma=0.3, spread=0.1, regularization=regularization, steps=6, noise=NOISE)

    def loss(t, x):
        sigma = uniform(NOISE, t, 0, low=0.2, high=0.4)
        denoised = denoiser(x + sigma * noise_at(x, t, 1), sigma)
        of_input = denoiser(x0 + sigma * noise_at(x, t, 2), sigma)
        return mean_square(denoised, x) + regularization * mean_square(denoised, of_input)

    want = optimize(x0, loss, 6, 0.05).clamp(0, 1)
    torch.testing.assert_close(model(x0), want, rtol=0, atol=1e-10)
    assert float((want - x0).abs().max()) > 0.1


def test_scoreopt_n_is_adam():
    denoiser, x0 = conv_denoiser(dtype=torch.float64), tensor(0, 1, 1, 5, 5)
    noise = noise_at(x0, 0)
    y = optimize(x0 + 0.3 * noise, lambda t, y: mean_square((y - denoiser(y, 0.3)) / 0.3, noise.expand_as(y)), 6, 0.05)
    model = B.ScoreOptN(denoiser, sigma=0.3, steps=6, noise=NOISE)
    torch.testing.assert_close(model(x0), denoiser(y, 0.3).clamp(0, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("radius", "norm"), [(0.08, "linf"), (0.3, "l2"), (math.inf, "linf"), (math.inf, "l2")])
def test_likelihood_maximization_is_adam(radius, norm):
    x0 = tensor(0, 1, 1, 5, 5)
    model = B.LikelihoodMaximization(
        conv_denoiser(dtype=torch.float64),
        sigma_min=0.1,
        sigma_max=0.4,
        steps=6,
        radius=radius,
        norm=norm,
        noise=NOISE,
    )
    want = optimize(
        x0,
        lambda t, x: likelihood_loss(model, t, x),
        6,
        0.05,
        lambda x: project(x, x0, torch.tensor(radius, dtype=x.dtype), norm),
    )
    torch.testing.assert_close(model(x0), want, rtol=0, atol=1e-10)
    assert float((want - x0).abs().max()) > 0.05


def test_ere_descent_is_the_purifier_without_ascent():
    x = tensor(0, 2, 1, 4, 4)
    want = ps.Purifier(mixture(), sigma=0.2, ascent_radius=0, steps=4, radius=0.2, norm="l2")(x)
    assert torch.equal(B.EreDescent(mixture(), sigma=0.2, steps=4, radius=0.2, norm="l2")(x), want)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_straight_through_ignores_the_ball_of_every_step(norm):
    """Against Adam in plain PyTorch whose projection is the identity for autograd."""
    model = B.LikelihoodMaximization(mixture(), steps=3, radius=0.05, norm=norm, noise=NOISE)
    leaf = tensor(0, 1, 1, 4, 4).requires_grad_()
    x, first, second = leaf, 0.0, 0.0
    for t in range(3):
        (g,) = torch.autograd.grad(likelihood_loss(model, t, x), x, create_graph=True)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        moved = x - 0.05 * (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        x = moved + (project(moved, leaf, 0.05, norm) - moved).detach()
    weight = tensor(7, *leaf.shape, low=-1)
    (want,) = torch.autograd.grad((x * weight).sum(), leaf)
    got = gradient_of(model, leaf, "straight_through")
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert float((got - gradient_of(model, leaf, "exact")).norm()) > 0.01 * float(got.norm())
