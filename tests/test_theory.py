"""The scripts behind the figures of docs/mathematics.md, at reduced size, against closed forms and known numbers."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_forms import gaussian_denoiser, gaussian_ere, gaussian_prior
from scipy import integrate, stats

import pursamere as ps
from pursamere_ext import _C

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "theory"
NAMES = ("figure1", "expansion", "mode_recovery", "sharpness", "compression", "draws")


@pytest.fixture(scope="module")
def theory():
    """Imports one of the scripts, whose names the other tests shall not see."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER):
                del sys.modules[name]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Figure 1


def test_figure1_has_the_known_minima(theory):
    found = theory("figure1").compute(sigmas=(0.1, 0.05), points=161, draws=2000, sampled=17)
    assert found["maxima"] == pytest.approx([0.25, 0.75], abs=1e-4)
    for curve, minima in zip(found["curves"], ([0.221, 0.779], [0.247, 0.753]), strict=True):
        assert curve["minima"] == pytest.approx(minima, abs=6e-4)
        exact = curve["ere"][::10]
        # The draws' second moment, which is common to all points, has a standard error of 4.5 %.
        assert np.abs(curve["estimate"].numpy() / exact - 1).max() < 0.15


def test_figure1_posterior_mean_and_density_against_adaptive_quadrature(theory):
    script = theory("figure1")
    assert integrate.quad(script.prior, 0, 1)[0] == pytest.approx(1, abs=1e-10)
    for y, sigma in ((-0.1, 0.2), (0.3, 0.1), (0.5, 0.05), (1.02, 0.025)):

        def posterior(x, power, y=y, sigma=sigma):
            return x**power * script.prior(x) * math.exp(-0.5 * ((y - x) / sigma) ** 2)

        points = [min(max(y, 0.01), 0.99)]
        first, mass = (integrate.quad(posterior, 0, 1, args=(power,), points=points)[0] for power in (1, 0))
        got = script.posterior_mean(torch.tensor([y], dtype=torch.float64), sigma)
        assert float(got) == pytest.approx(first / mass, rel=1e-8)


# Expansion


@pytest.mark.slow
def test_the_expansion_has_order_two(theory):
    found = theory("expansion").compute(dimensions=(1, 16), points=4, draws=2000)
    assert [(case["prior"], case["d"]) for case in found["cases"]] == [
        (prior, d) for prior in ("Gaussian", "mixture", "kernel density") for d in (1, 16)
    ]
    for case in found["cases"]:
        assert case["order"] == pytest.approx(2, abs=0.1)
        exact, scale = case["exact"], case["d"] / 0.3**2
        assert float((case["quadrature"] - exact).abs().max()) < 0.02 * scale
        # 2 xi^T H xi in the place of 2 trace H, averaged over 1,000 pairs.
        assert float((case["estimate"] - case["quadrature"]).abs().max()) < 5 * scale * math.sqrt(8 / case["d"] / 1000)


def test_the_exact_error_of_a_gaussian(theory):
    """M3, for which 2 div s + ||s||^2 = -2 d / tau^2 + ||x||^2 / tau^4."""
    mixtures = theory("mixtures")
    prior = mixtures.random_mixture(1, 5, generator(), std=0.3, alike=True)
    x = 0.5 + torch.randn(4, 5, generator=generator(1), dtype=torch.float64)
    want = gaussian_ere(x - 0.5, 0.2, 0.3)
    torch.testing.assert_close(prior.ere(gaussian_prior(0.5, 0.3), x, 0.2), want, rtol=1e-12, atol=0)
    want = -2 * 5 / 0.3**2 + (x - 0.5).square().sum(1) / 0.3**4
    torch.testing.assert_close(prior.second_order(x), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("alike", "d"), [(False, 2), (False, 3), (True, 3)])
def test_the_exact_error_of_mixtures(theory, alike, d):
    """Against the trapezoidal rule in all directions of the noise."""
    mixtures = theory("mixtures")
    prior = mixtures.random_mixture(3, d, generator(), std=0.3, alike=alike)
    means, stds = (mixtures.as_images(values) for values in (prior.means, prior.stds))
    denoiser = ps.denoisers.GaussianMixture(means, stds, prior.weights)
    x, line = prior.means[:1] + 0.1, torch.linspace(-7, 7, 36, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[line] * d)
    weights = (-0.5 * nodes.square().sum(1)).exp()
    residual = x - denoiser(mixtures.as_images(x + 0.2 * nodes), 0.2).flatten(1)
    want = (weights * residual.square().sum(1)).sum() / weights.sum()
    torch.testing.assert_close(prior.ere(denoiser, x, 0.2)[0], want, rtol=1e-8, atol=0)


# Mode recovery


@pytest.mark.slow
def test_minimizers_approach_modes_where_the_log_density_is_symmetric(theory):
    sigmas = (0.1, 0.05, 0.02)
    found = theory("mode_recovery").compute(sigmas, starts=16, draws=16, steps=100, paths=2, grid=5)["priors"]
    separate, overlapping = found["separate"], found["overlapping"]
    exact = separate["exact_distance"].amax(1)
    assert exact[0] > 10 * exact[1] > 100 * exact[2]
    assert exact[2] < 1e-6
    plain, ascended = (separate["purified_distance"][rho][:, 1] for rho in (0.0, 0.05))
    assert plain[-1] < 1e-4
    assert 1e-3 < ascended[-1] < 0.01
    # Elsewhere they approach the minimizers of 2 div s + ||s||^2, and those aren't modes.
    assert float(overlapping["limit_distance"].min()) > 0.02
    difference = (overlapping["exact_distance"] - overlapping["limit_distance"]).abs()
    assert float(difference[-1].max()) < 0.01
    assert float(difference[-1].max()) < float(difference[-2].max())


@pytest.mark.slow
def test_modes_and_limits_against_a_grid(theory):
    """The density is that of scipy, its derivatives are finite differences."""
    script = theory("mode_recovery")
    prior = script.PRIORS["overlapping"]
    step, side = 0.002, np.arange(0, 1.0001, 0.002)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1)
    density = sum(
        float(weight) * stats.multivariate_normal(mean.numpy(), np.diag(std.numpy() ** 2)).pdf(grid)
        for weight, mean, std in zip(prior.weights, prior.means, prior.stds, strict=True)
    )
    log = np.log(density)
    slopes = np.gradient(log, step)
    laplacian = sum(np.gradient(np.gradient(log, step, axis=axis), step, axis=axis) for axis in (0, 1))
    modes = script.modes_of(prior)
    for values, points in (
        (-density, modes),
        (2 * laplacian + slopes[0] ** 2 + slopes[1] ** 2, script.minimize(prior.second_order, modes)),
    ):
        inner = values[1:-1, 1:-1]
        around = [np.roll(values, shift, (0, 1))[1:-1, 1:-1] for shift in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        lowest = grid[1:-1, 1:-1][np.all([inner <= other for other in around], axis=0)]
        for point in points.numpy():
            assert np.linalg.norm(lowest - point, axis=1).min() < 2 * step


# Sharpness


def test_the_largest_eigenvalue_of_a_gaussian(theory):
    """2 sigma^4 / (sigma^2 + tau^2)^2 in all directions, by M3."""
    script = theory("sharpness")
    purifier = ps.Purifier(gaussian_denoiser(0.3), sigma=0.2, radius=0.1, noise=ps.GaussianNoise(draws=2))
    images = torch.rand(3, 1, 2, 2, generator=generator(), dtype=torch.float64)
    got = script.largest_eigenvalues(script.Hessian(purifier, images), images)
    assert got.tolist() == pytest.approx([2 * 0.2**4 / (0.2**2 + 0.3**2) ** 2] * 3, rel=1e-9)


def test_the_largest_eigenvalue_with_negative_ones(theory):
    """Against Hessians by finite differences; in some images the eigenvalue of largest modulus is negative."""
    script = theory("sharpness")

    def denoiser(y, sigma):
        return y + 0.4 * (3 * y).sin() + 0.3 * (4 * y.roll(1, -1)).cos()

    purifier = ps.Purifier(denoiser, sigma=0.1, radius=0.1, noise=ps.GaussianNoise(draws=4))
    images = torch.rand(6, 1, 2, 3, generator=generator(), dtype=torch.float64)

    def ere(x):
        return ps.expected_reconstruction_error(denoiser, x, 0.1, purifier.noise, micro_batch=len(x))

    h, units = 1e-4, torch.eye(6).double().view(6, 1, 1, 2, 3)
    second = [
        [
            (
                ere(images + h * (a + b))
                - ere(images + h * (a - b))
                - ere(images - h * (a - b))
                + ere(images - h * (a + b))
            )
            / (4 * h**2)
            for b in units
        ]
        for a in units
    ]
    values = torch.linalg.eigvalsh(torch.stack([torch.stack(row) for row in second]).permute(2, 0, 1))
    assert bool((values[:, 0].abs() > values[:, -1]).any())
    assert bool((values[:, 0].abs() < values[:, -1]).any())
    got = script.largest_eigenvalues(script.Hessian(purifier, images), images)
    torch.testing.assert_close(got, values[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sharpness_on_digits(theory):
    found = theory("sharpness").compute((0.0, 0.4), samples=16, attack_steps=2)
    plain, ascended = found["rows"]
    assert float(plain["sharpness"].median()) < float(found["at_input"].median())
    assert float(plain["ere"].mean()) < float(ascended["ere"].mean())
    for row in found["rows"]:
        assert row["robust"]["correct"] == int(row["withstood"].sum())
        assert row["robust"]["samples"] == 16


# Compression


def test_compression_of_a_contraction(theory):
    """Every step of this purifier multiplies distances by 0.7, by M3."""
    purifier = ps.Purifier(
        gaussian_prior(0.5, 0.3),
        sigma=0.2,
        radius=math.inf,
        steps=3,
        step_rule="gradient",
        step_size=0.3 * (0.2**2 + 0.3**2) ** 2 / (2 * 0.2**4),
        ascent_radius=0.0,
        noise=ps.GaussianNoise(draws=2),
    )
    images = 0.3 + 0.4 * torch.rand(5, 1, 3, 3, generator=generator(), dtype=torch.float64)
    script = theory("contraction")
    perturbed = script.random_signs(images, 0.1)
    perturbed[3] = images[3]  # not perturbed at all, so left out
    got = script.ratios(purifier, images, perturbed)
    assert got["after_step"].tolist() == pytest.approx([1, 0.7, 0.49, 0.343], rel=1e-9)
    assert float(got["in_all"]) == pytest.approx(0.343, rel=1e-9)


def test_rank_correlation_against_scipy(theory):
    a, b = [0.5, 0.1, 0.5, 0.9, 0.3, 0.2], [1.0, 3.0, 2.0, 0.0, 2.0, 2.0]
    assert theory("contraction").rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


@pytest.mark.slow
def test_compression_on_digits(theory):
    found = theory("contraction").compute(("tuned", "no steps"), samples=16, attack_steps=3)
    tuned, nothing = found["rows"]
    assert float(tuned["random"]["in_all"]) < 0.8
    assert [float(nothing[kind]["in_all"]) for kind in ("random", "adversarial")] == [1, 1]
    assert tuned["robust"]["correct"] > nothing["robust"]["correct"]
    assert found["rank_correlation"]["random"] == pytest.approx(-1)


# Draws


@pytest.mark.slow
def test_bias_and_spread_of_the_draws(theory):
    script, seeds = theory("draws"), 100
    found = script.compute(counts=(2, 16), seeds=seeds)
    rows = {(row["prior"], row["antithetic"]): row for row in found["rows"]}
    for row in rows.values():
        for bias, spread in (("bias", "spread"), ("bias_of_gradient", "spread_of_gradient")):
            # Unbiased: the mean error is what so many seeds leave.
            assert np.all(np.abs(row[bias]) < 4 * np.array(row[spread]) / math.sqrt(seeds) + 1e-12)
    independent = rows["Gaussian, d = 64", False]
    # With c = tau^2 / (sigma^2 + tau^2): the gradient is 2 (1 - c) ((1 - c) x - c sigma mean xi).
    prior = script.priors()["Gaussian, d = 64"]
    x = prior.stds[:1] * torch.randn(1, 64, generator=generator(1), dtype=torch.float64)
    c = 0.3**2 / (0.2**2 + 0.3**2)
    length, noise = (1 - c) * float(x.norm()), c * 0.2
    for i, draws in enumerate((2, 16)):
        assert independent["spread_of_gradient"][i] == pytest.approx(noise * math.sqrt(64 / draws) / length, rel=0.05)
        variance = (2 * 64 * noise**4 + 4 * noise**2 * length**2) / draws
        assert independent["spread"][i] == pytest.approx(math.sqrt(variance) / (length**2 + 64 * noise**2), rel=0.25)
    assert max(rows["Gaussian, d = 64", True]["spread_of_gradient"]) < 1e-12
    antithetic, independent = (rows["mixture, d = 2", kind]["spread_of_gradient"] for kind in (True, False))
    assert np.all(np.less(antithetic, independent))


# From words to normals


def test_the_formula_for_normals():
    """As docs/mathematics.md states it, in float64."""
    seed = (5 << 32) + 77
    bank = ps.GaussianNoise(seed=seed, draws=6, antithetic=True).sample((2, 3, 5))
    for k in range(6):
        for e, got in enumerate(bank[k].flatten().tolist()):
            b = e // 4
            words = _C.philox4x32_10([b % 2**32, b // 2**32, k // 2, 0], [seed % 2**32, seed // 2**32])
            a, t = words[:2] if e % 4 < 2 else words[2:]
            radius = math.sqrt(-2 * math.log(2**-31 * (a // 2) + 2**-32))
            wave = math.cos if e % 2 == 0 else math.sin
            assert got == pytest.approx((-1) ** k * radius * wave(2 * math.pi * t / 2**32), abs=1e-6)


# Files


@pytest.mark.slow
def test_the_runner_writes_the_same_bytes_again(theory, tmp_path, monkeypatch, capsys):
    run, script = theory("run"), theory("figure1")
    monkeypatch.setattr(script, "compute", lambda real=script.compute: real((0.1,), points=41, draws=100, sampled=5))
    for folder in ("a", "b"):
        monkeypatch.setattr(sys, "argv", ["run.py", "figure1", "-o", str(tmp_path / folder)])
        run.main()
    names = [f"figure1.{suffix}" for suffix in ("json", "png", "svg")]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "figure1.json").read_text())["curves"][0]["sigma"] == 0.1
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["run.py", "figure2", "-o", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.main()
    assert "unknown name 'figure2', expected one of figure1, expansion" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers_still_make_the_figure(theory, name):
    """docs/mathematics.md shows the figures, and the scripts can draw the published numbers."""
    images = ROOT / "docs" / "images" / "theory"
    numbers = json.loads((images / f"{name}.json").read_text())
    figure = theory("run").FIGURES[name].draw(numbers)
    assert theory("output").to_svg(figure, name).startswith(b"<?xml")
    assert f"(images/theory/{name}.png)" in (ROOT / "docs" / "mathematics.md").read_text()
    assert len((images / f"{name}.png").read_bytes()) < 100_000
