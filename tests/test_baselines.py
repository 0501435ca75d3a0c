"""Baselines against closed forms, torch.optim.Adam and automatic differentiation; determinism and evaluations."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from cases import tensor
from closed_forms import gaussian_prior
from nets import AttentionDenoiser, conv_classifier, conv_denoiser, fixed_weights

import pursamere as ps
from pursamere.baselines._randomness import derived, uniform
from pursamere.determinism import copy_with

B = ps.baselines
NOISE = ps.GaussianNoise(seed=3)
MODELS = {
    "diffpure": partial(B.DiffPure, steps=4, noise=NOISE),
    "diffpure half, corrected": partial(B.DiffPure, steps=3, stochasticity=0.5, sigma_max=0.3, noise=NOISE),
    "diffpure euler": partial(B.DiffPure, steps=3, solver="euler", noise=NOISE),
    "diffpure heun": partial(B.DiffPure, steps=3, solver="heun", sigma_max=0.3, noise=NOISE),
    "diffpure ode": partial(B.DiffPure, steps=2, solver="heun", stochasticity=0, noise=NOISE),
    "diffpure half": partial(B.DiffPure, steps=2, solver="euler", stochasticity=0.5, noise=NOISE),
    "published diffpure": partial(B.PublishedDiffPure, steps=4, noise=NOISE),
    "scoreopt_o": partial(B.ScoreOptO, steps=3, noise=NOISE),
    "scoreopt_o regularized": partial(B.ScoreOptO, steps=3, regularization=0.7, noise=NOISE),
    "scoreopt_n": partial(B.ScoreOptN, steps=3, noise=NOISE),
    "scoreopt_n, no step": partial(B.ScoreOptN, steps=0, noise=NOISE),
    "likelihood": partial(B.LikelihoodMaximization, steps=3, noise=NOISE),
    "likelihood linf": partial(B.LikelihoodMaximization, steps=3, radius=0.07, noise=NOISE),
    "likelihood l2": partial(B.LikelihoodMaximization, steps=3, radius=0.1, norm="l2", noise=NOISE),
    "ere_descent": partial(B.EreDescent, sigma=0.2, radius=0.2, steps=3, noise=NOISE),
}
EVERY = pytest.mark.parametrize("name", MODELS)
ADAM = pytest.mark.parametrize("name", [name for name in MODELS if "score" in name or "likelihood" in name])


def mixture(dtype=torch.float64):
    return ps.denoisers.GaussianMixture(tensor(5, 3, 1, 4, 4, low=0.2, high=0.8, dtype=dtype), 0.15)


def gradient_of(model, x, mode):
    """Of a fixed linear function of the purified images."""
    leaf = x.detach().clone().requires_grad_()
    weight = tensor(7, *x.shape, low=-1, dtype=x.dtype)
    return torch.autograd.grad((model(leaf, gradient=mode) * weight).sum(), leaf)[0]


# Gradients.


@EVERY
@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("low", [0.0, 0.3], ids=["with clipped pixels", "without"])
def test_exact_is_unrolled(name, micro_batch, low):
    x = tensor(0, 3, 1, 4, 4, low=low, high=1 - low)
    for denoiser in (mixture(), conv_denoiser(dtype=torch.float64)):
        model = MODELS[name](denoiser, micro_batch=micro_batch, invariance="off")
        got, want = gradient_of(model, x, "exact"), gradient_of(model, x, "unrolled")
        assert float(want.norm()) > 0
        assert float((got - want).norm()) <= 1e-9 * float(want.norm())


@EVERY
def test_exact_matches_finite_differences(name):
    model = MODELS[name](mixture())
    x = tensor(0, 2, 1, 4, 4, low=0.2, high=0.8)
    weight, direction, h = tensor(7, *x.shape, low=-1), tensor(2, *x.shape, low=-1), 1e-6
    ahead, behind = (float((model(x + s * h * direction) * weight).sum()) for s in (1, -1))
    slope = float((gradient_of(model, x, "exact") * direction).sum())
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-8)


@EVERY
def test_modes_do_not_change_the_value_and_identity_is_the_identity(name):
    x, model = tensor(0, 3, 1, 6, 6, dtype=torch.float32), MODELS[name](conv_denoiser())
    want = model(x)
    assert float((want - x).abs().max()) > 0.01
    assert 0 <= float(want.min()) <= float(want.max()) <= 1
    for mode in ("exact", "straight_through", "identity", "unrolled"):
        assert torch.equal(model(x.clone().requires_grad_(), gradient=mode).detach(), want)
    assert torch.equal(gradient_of(model, x, "identity"), tensor(7, *x.shape, low=-1, dtype=x.dtype))


@EVERY
def test_straight_through_is_exact_where_nothing_is_projected(name):
    x = tensor(0, 2, 1, 4, 4, low=0.45, high=0.55)
    free = {}
    if "likelihood" in name:
        free = {"radius": math.inf, "learning_rate": 0.02}
    if name == "ere_descent":
        free = {"radius": math.inf, "step_size": 0.01}
    model = MODELS[name](mixture(), **free)
    purified = model(x)
    assert 0 < float(purified.min()) <= float(purified.max()) < 1
    torch.testing.assert_close(gradient_of(model, x, "straight_through"), gradient_of(model, x, "exact"))


def test_straight_through_ignores_the_last_clip():
    """On a linear denoiser, whose result goes out of [0, 1] everywhere: exactly nothing passes the clip."""
    x, v = torch.full((1, 1, 3, 3), 0.9, dtype=torch.float64), tensor(7, 1, 1, 3, 3, low=-1)
    model = B.DiffPure(lambda y, sigma: 2 * y, steps=1, sigma_max=0.01)
    assert torch.equal(model(x), torch.ones_like(x))
    assert torch.equal(gradient_of(model, x, "exact"), torch.zeros_like(x))
    torch.testing.assert_close(gradient_of(model, x, "straight_through"), 2 * v)
    n = B.ScoreOptN(lambda y, sigma: 2 * y, steps=0, sigma=0.01)
    torch.testing.assert_close(gradient_of(n, x, "straight_through"), 2 * v)
    assert torch.equal(gradient_of(n, x, "exact"), torch.zeros_like(x))


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


@ADAM
def test_a_pixel_that_does_not_matter_leaves_the_gradient_finite(name):
    """Where the loss has no derivative Adam's second moment is 0, and so is the step."""

    def denoiser(y, sigma):
        keep = torch.zeros_like(y)
        keep[..., 0] = 1
        return torch.where(keep > 0, 0.5 * y, y)

    model = MODELS[name](denoiser)
    x = tensor(0, 1, 1, 4, 4, low=0.3, high=0.7)
    got, want = gradient_of(model, x, "exact"), gradient_of(model, x, "unrolled")
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got, want)


@EVERY
def test_networks_with_attention_need_no_setting(name):
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32, low=0.3, high=0.7)
    network = fixed_weights(AttentionDenoiser())
    single = gradient_of(MODELS[name](network), x, "exact")
    double = gradient_of(MODELS[name](network.double()), x.double(), "exact")
    assert float((single - double).norm()) <= 1e-2 * float(double.norm())


@EVERY
@pytest.mark.parametrize("cut", ["detach", "parameter"])
def test_a_denoiser_without_a_derivative_is_refused(name, cut):
    scale = torch.tensor(0.9, requires_grad=cut == "parameter")
    model = MODELS[name](lambda y, sigma: y.detach() * scale)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    for mode in ("exact", "unrolled"):
        with pytest.raises(ValueError, match="denoiser must be differentiable in its input"):
            model(x, gradient=mode).sum().backward()
    if "diffpure" in name:
        model(x.detach())


# Determinism.


@EVERY
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_sample_has_the_same_bits_in_any_batch(name, micro_batch):
    x = tensor(0, 5, 1, 6, 6, dtype=torch.float32)
    model = MODELS[name](conv_denoiser(), micro_batch=micro_batch)
    classifier = ps.PurifiedClassifier(model, conv_classifier())
    whole, logits = model(x), classifier(x)
    for rows in ([4], [3, 1], [2, 2, 2, 2, 0], [3, 1, 0, 2, 4]):
        assert torch.equal(model(x[rows]), whole[rows])
        assert torch.equal(classifier(x[rows]), logits[rows])
    assert model(x[:0]).shape == (0, 1, 6, 6)


@EVERY
def test_a_gradient_has_the_same_bits_in_any_batch(name):
    x, model = tensor(0, 3, 1, 6, 6, dtype=torch.float32), MODELS[name](conv_denoiser())

    def gradient(images):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(model(leaf).square().sum(), leaf)[0]

    assert torch.equal(gradient(x[[2, 0]]), gradient(x)[[2, 0]])


@EVERY
def test_the_same_bits_under_any_random_state_which_stays_as_it_is(name):
    x, denoiser = tensor(0, 2, 1, 6, 6, dtype=torch.float32), conv_denoiser()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = MODELS[name](denoiser)(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(MODELS[name](denoiser)(x), first)
    assert not MODELS[name](denoiser).random


SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_baselines import MODELS, conv_denoiser, tensor
x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
for name, make in MODELS.items():
    print(name, make(conv_denoiser())(x).numpy().tobytes().hex())
"""


def test_a_fresh_process_gives_the_same_bits(request):
    script = SCRIPT.format(folder=str(request.path.parent))
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    here = [f"{name} {make(conv_denoiser())(x).numpy().tobytes().hex()}" for name, make in MODELS.items()]
    assert lines.splitlines() == here


def test_purposes_have_noise_of_their_own():
    seeds = {derived(NOISE, *purpose).seed for purpose in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,)]}
    seeds |= {derived(ps.GaussianNoise(seed=4), 0).seed, NOISE.seed}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    numbers = torch.tensor([uniform(NOISE, t, low=0.2, high=0.3) for t in range(2000)])
    assert 0.2 <= float(numbers.min()) < 0.201 < 0.299 < float(numbers.max()) <= 0.3
    assert float(numbers.mean()) == pytest.approx(0.25, abs=4 * 0.1 / math.sqrt(12 * 2000))


@EVERY
def test_the_seed_matters(name):
    x = tensor(0, 1, 1, 6, 6, dtype=torch.float32)
    first, other = (MODELS[name](conv_denoiser(), noise=ps.GaussianNoise(seed, draws=4)) for seed in (1, 99))
    assert not torch.equal(first(x), other(x))


def test_fresh_noise_differs_from_call_to_call_and_can_be_repeated():
    x = tensor(0, 2, 1, 4, 4)
    model = B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=NOISE)
    assert model.random
    calls = [model(x) for _ in range(3)]
    assert not torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[1], calls[2])
    model.reset()
    assert all(torch.equal(model(x), call) for call in calls)
    model.reset(8)
    other = model(x)
    assert not any(torch.equal(other, call) for call in calls)
    assert torch.equal(B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=ps.GaussianNoise(seed=8))(x), other)


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_with_fresh_noise_a_gradient_is_that_of_its_own_call(mode):
    """Also when other calls come between the forward and the backward pass."""
    x, weight = tensor(0, 2, 1, 4, 4, low=0.3, high=0.7), tensor(7, 2, 1, 4, 4, low=-1)
    model = B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=NOISE)
    leaf = x.clone().requires_grad_()
    first = model(leaf, gradient=mode)
    model(x)
    (got,) = torch.autograd.grad((first * weight).sum(), leaf)
    fixed = copy_with(B.DiffPure(mixture(), steps=3), noise=derived(NOISE, 1))  # that of the first call
    assert torch.equal(fixed(x), first.detach())
    assert torch.equal(gradient_of(fixed, x, mode), got)


# Adam against torch.optim.Adam, on losses written here.


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


# Network evaluations.


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


# Bad input.


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
