"""The baselines' network passes, arguments, dtypes and denoisers."""

import math

import pytest
import torch
from baseline_cases import EVERY, MODELS, B, gradient_of, mixture
from cases import tensor
from closed_forms import gaussian_prior
from nets import conv_denoiser

import pursamere as ps


class CountedPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, counts):
        ctx.counts = counts
        counts["forward"] += len(y)
        return 0.8 * y

    @staticmethod
    def backward(ctx, v):
        ctx.counts["backward"] += len(v)
        return 0.8 * v, None


PURIFIERS = {
    f"{direction} {rho}": lambda d, direction=direction, rho=rho, **o: ps.Purifier(
        d, sigma=0.2, radius=0.2, steps=3, direction=direction, ascent_radius=rho, **o
    )
    for direction in ("ere", "score")
    for rho in (0.0, 0.1)
}


@pytest.mark.parametrize("name", [*MODELS, *PURIFIERS])
def test_evaluations_are_those_that_happen(name):
    counts = {"forward": 0, "backward": 0}
    model = (MODELS | PURIFIERS)[name](lambda y, sigma: CountedPass.apply(y, counts))
    model(tensor(0, 5, 1, 4, 4))  # the first call checks the denoiser too
    counts.update(forward=0, backward=0)
    model(tensor(0, 5, 1, 4, 4))
    assert {kind: 5 * count for kind, count in model.network_passes._asdict().items()} == counts
    assert model.network_passes.total == sum(counts.values()) // 5
    assert f"network_passes={model.network_passes.total}" in repr(model)


@pytest.mark.parametrize("name", B.BASELINES)
@pytest.mark.parametrize("passes", [31, 32, 100])
def test_as_many_steps_as_the_passes_allow(name, passes):
    needed = {"sigma": 0.2, "radius": 0.2} if name == "ere_descent" else {}
    model = B.with_passes(name, mixture(), passes, noise=ps.GaussianNoise(seed=2, draws=4), **needed)
    one_more = B.BASELINES[name](mixture(), steps=model.steps + 1, noise=model.noise, **needed)
    assert model.network_passes.total <= passes < one_more.network_passes.total
    assert model.noise.seed == 2
    assert model.random == (name in ("diffpure", "diffpure_published"))


def test_options_of_a_baseline_of_equal_evaluations():
    assert B.with_passes("diffpure", mixture(), 20, solver="heun").steps == 10
    assert B.with_passes("scoreopt_o", mixture(), 30, regularization=0.1).steps == 10
    purifier = B.with_passes(ps.Purifier, mixture(), 160, sigma=0.2, radius=0.2)
    assert purifier.steps == 5  # forward and backward, twice, on 8 draws
    with pytest.raises(ValueError, match="passes must be at least 3, what one step takes, got 2"):
        B.with_passes(B.ScoreOptN, mixture(), 2)
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        B.with_passes("diffpure", mixture(), 0)
    with pytest.raises(TypeError, match="steps follows from passes"):
        B.with_passes("diffpure", mixture(), 10, steps=3)
    with pytest.raises(ValueError, match=r"baseline must be one of 'diffpure', .*, got 'gdmp'"):
        B.with_passes("gdmp", mixture(), 10)


@pytest.mark.parametrize(
    ("baseline", "keywords", "error", "message"),
    [
        ("DiffPure", {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ("DiffPure", {"sigma_max": 0}, ValueError, "sigma_max must be positive and finite, got 0"),
        ("DiffPure", {"sigma_min": 0.2}, ValueError, "sigma_min must be at most sigma_max = 0.17, got 0.2"),
        ("DiffPure", {"rho": -1}, ValueError, "rho must be positive and finite, got -1"),
        ("DiffPure", {"solver": "rk4"}, ValueError, "solver must be one of 'corrected', 'euler', 'heun', got 'rk4'"),
        ("DiffPure", {"stochasticity": 1.5}, ValueError, r"stochasticity must be in \[0, 1\], got 1.5"),
        ("DiffPure", {"fresh_noise": 1}, TypeError, "fresh_noise must be a bool, got int"),
        ("DiffPure", {"noise": 3}, TypeError, "noise must be a pursamere.GaussianNoise, got int"),
        ("PublishedDiffPure", {"time": 1.5}, ValueError, "time must be more than 1e-05 a step, and at most 1, got 1.5"),
        ("PublishedDiffPure", {"time": 1e-5}, ValueError, "time must be more than 1e-05 a step, .*, got 1e-05 for 100"),
        ("PublishedDiffPure", {"beta_min": 0}, ValueError, "beta_min must be positive and finite, got 0"),
        ("PublishedDiffPure", {"beta_max": 0.01}, ValueError, "beta_max must be at least beta_min = 0.1, got 0.01"),
        ("PublishedDiffPure", {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ("ScoreOptO", {"spread": 0.25}, ValueError, "spread must be less than sigma = 0.25, got 0.25"),
        ("ScoreOptO", {"regularization": -1}, ValueError, "regularization must be at least 0 and finite, got -1"),
        ("ScoreOptN", {"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ("ScoreOptN", {"sigma": "a"}, TypeError, "sigma must be a real number, got str"),
        ("LikelihoodMaximization", {"sigma_max": 0.1}, ValueError, "sigma_min must be at most sigma_max = 0.1, got"),
        ("LikelihoodMaximization", {"radius": -1}, ValueError, "radius must be at least 0, got -1"),
        ("LikelihoodMaximization", {"radius": 8}, ValueError, "radius must be at most 1, the range of the images, or"),
        ("LikelihoodMaximization", {"norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ("LikelihoodMaximization", {"steps": -1}, ValueError, r"steps must be in \[0, 100000\], got -1"),
        ("EreDescent", {"sigma": 0.2, "radius": 0.2, "steps": -1}, ValueError, r"steps must be in \[0, 100000\], got"),
        ("EreDescent", {"radius": 0.2}, TypeError, "missing 1 required keyword-only argument: 'sigma'"),
    ],
)
def test_arguments(baseline, keywords, error, message):
    with pytest.raises(error, match=message):
        getattr(B, baseline)(mixture(), **keywords)


@EVERY
def test_bad_images_and_bad_denoisers(name):
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    model = MODELS[name](lambda y, sigma: y * 0.5)
    with pytest.raises(ValueError, match=r"x must have values in \[0, 1\]"):
        model(x + 1)
    with pytest.raises(ValueError, match="gradient must be one of"):
        model(x, gradient="bpda")
    with pytest.raises(TypeError, match="denoiser must be callable"):
        MODELS[name](3)
    for bad in (math.nan, math.inf):
        with pytest.raises(RuntimeError, match="the denoiser returned NaN or infinity"):
            MODELS[name](lambda y, sigma, bad=bad: y * 0 + bad)(x)
    with pytest.raises(ValueError, match="denoiser must return the shape that it was given"):
        MODELS[name](lambda y, sigma: y[..., :2])(x)
    with pytest.raises(RuntimeError, match="drew random numbers from PyTorch's global state"):
        MODELS[name](lambda y, sigma: 0.9 * y + 0.01 * torch.randn_like(y))(x)
    with pytest.raises(RuntimeError, match="depend on the other images in a micro-batch of 4"):
        MODELS[name](lambda y, sigma: y * 0.5 + 0.01 * y.mean(), micro_batch=4, invariance="strict")(x)


@EVERY
def test_half_precision(name):
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float16)
    model = MODELS[name](conv_denoiser(dtype=torch.float16))
    result = model(x)
    assert result.dtype == torch.float16
    want = MODELS[name](conv_denoiser(dtype=torch.float64))(x.double())
    assert float((result.double() - want).abs().mean()) < 0.02
    assert bool(gradient_of(model, x, "exact").isfinite().all())


@pytest.mark.parametrize("kind", ["score", "noise"])
@EVERY
def test_denoisers_that_predict_something_else(name, kind):
    x, denoiser = tensor(0, 2, 1, 4, 4), gaussian_prior(0.5, 0.05)
    other = {
        "score": ps.denoisers.from_score(lambda y, sigma: (denoiser(y, sigma) - y) / sigma**2),
        "noise": ps.denoisers.from_noise_prediction(lambda y, sigma: (y - denoiser(y, sigma)) / sigma),
    }[kind]
    torch.testing.assert_close(MODELS[name](other)(x), MODELS[name](denoiser)(x), rtol=0, atol=1e-6)
