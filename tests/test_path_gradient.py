"""The purifier's gradients: exact against automatic differentiation, finite differences and closed forms."""

import math

import pytest
import torch
from cases import tensor
from closed_forms import gaussian_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import AttentionDenoiser, conv_denoiser, fixed_weights

import pursamere as ps

NOISE = ps.GaussianNoise(seed=2, draws=4)
STEP_SIZE = {"unit": 0.3, "gradient": 0.2, "sign": 0.05}
OPTIONS = {
    "norm": ["linf", "l2"],
    "step_rule": ["unit", "gradient", "sign"],
    "direction": ["ere", "score"],
    "radius": [0.05, 0.3, math.inf],
    "ascent_radius": [0.0, 0.1],
    "micro_batch": [1, 4],
    "steps": [0, 1, 3],
}


def make_purifier(denoiser, step_rule="unit", **options):
    settings = {"sigma": 0.3, "radius": 0.2, "step_size": STEP_SIZE[step_rule], "noise": NOISE, **options}
    return ps.Purifier(denoiser, step_rule=step_rule, **settings)


def gradient_of(model, x, mode):
    """Of a fixed linear function of the purified images."""
    leaf = x.detach().clone().requires_grad_()
    weight = tensor(7, *x.shape, low=-1, dtype=x.dtype)
    return torch.autograd.grad((model(leaf, gradient=mode) * weight).sum(), leaf)[0]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}))
def test_exact_is_unrolled_in_float64(options):
    model = make_purifier(conv_denoiser(dtype=torch.float64), **options)
    x = tensor(0, 3, 1, 4, 5)
    got, want = gradient_of(model, x, "exact"), gradient_of(model, x, "unrolled")
    assert float((got - want).norm()) <= 1e-9 * float(want.norm())
    assert float(want.norm()) > 0


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_a_sign_needs_no_derivative_of_the_denoiser(mode):
    x, options = tensor(0, 2, 1, 6, 6, dtype=torch.float32), {"step_rule": "sign", "direction": "score"}
    cut, whole = (
        make_purifier(denoiser, **options) for denoiser in (torch.no_grad()(conv_denoiser()), conv_denoiser())
    )
    got = gradient_of(cut, x, mode)
    assert torch.equal(got, gradient_of(whole, x, mode))
    assert float(got.norm()) > 0


@pytest.mark.parametrize("direction", OPTIONS["direction"])
@pytest.mark.parametrize("step_rule", OPTIONS["step_rule"])
@pytest.mark.parametrize("norm", OPTIONS["norm"])
def test_exact_is_unrolled_in_float32(direction, step_rule, norm):
    model = make_purifier(conv_denoiser(), step_rule=step_rule, norm=norm, direction=direction, steps=4)
    x = tensor(0, 5, 1, 6, 6, dtype=torch.float32)
    got, want = gradient_of(model, x, "exact"), gradient_of(model, x, "unrolled")
    assert float((got - want).norm()) <= 1e-4 * float(want.norm())


@pytest.mark.parametrize("direction", OPTIONS["direction"])
@pytest.mark.parametrize("kind", ["kernel density", "mixture", "score", "noise"])
def test_exact_is_unrolled_for_every_kind_of_denoiser(kind, direction):
    images = tensor(5, 30, 1, 4, 4)
    denoiser = {
        "kernel density": lambda: ps.denoisers.KernelDensity(images, 0.2),
        "mixture": lambda: ps.denoisers.GaussianMixture(images[:3], torch.full((3,), 0.2), torch.ones(3) / 3),
        "score": lambda: ps.denoisers.from_score(lambda y, sigma: (0.3 - y).tanh() / (sigma**2 + 0.1)),
        "noise": lambda: ps.denoisers.from_noise_prediction(lambda y, sigma: (y - 0.3).tanh() * sigma),
    }[kind]()
    model = make_purifier(denoiser, direction=direction, radius=0.2, steps=4)
    x = tensor(0, 5, 1, 4, 4)
    got, want = gradient_of(model, x, "exact"), gradient_of(model, x, "unrolled")
    assert float((got - want).norm()) <= 1e-9 * float(want.norm())
    assert float((got - gradient_of(model, x, "identity")).norm()) > 1e-3 * float(want.norm())


@pytest.mark.parametrize("direction", OPTIONS["direction"])
@pytest.mark.parametrize(
    ("step_rule", "norm", "radius"), [("unit", "linf", 0.05), ("gradient", "l2", 0.1), ("unit", "l2", 2.0)]
)
def test_exact_matches_finite_differences(direction, step_rule, norm, radius):
    model = make_purifier(
        conv_denoiser(dtype=torch.float64), step_rule=step_rule, norm=norm, radius=radius, direction=direction, steps=3
    )
    x = tensor(0, 2, 1, 4, 4, low=0.2, high=0.8)
    weight, direction_in_space, h = tensor(7, *x.shape, low=-1), tensor(2, *x.shape, low=-1), 1e-6
    ahead, behind = (float((model(x + s * h * direction_in_space) * weight).sum()) for s in (1, -1))
    slope = float((gradient_of(model, x, "exact") * direction_in_space).sum())
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-8)


def test_gaussian_prior_has_the_gradient_computed_by_hand():
    """A linear denoiser: grad R is a x, so a gradient step contracts and a unit step goes straight to the mode."""
    tau, sigma, steps = 0.5, 0.3, 3
    x = tensor(0, 2, 1, 3, 3, low=0.4, high=0.9)
    v = tensor(7, *x.shape, low=-1)

    def gradient(step_rule, size, ascent_radius):
        model = ps.Purifier(
            gaussian_denoiser(tau),
            sigma=sigma,
            steps=steps,
            step_rule=step_rule,
            step_size=size,
            radius=math.inf,
            ascent_radius=ascent_radius,
            noise=NOISE,
        )
        return gradient_of(model, x, "exact")

    a = 2 * sigma**4 / (sigma**2 + tau**2) ** 2
    torch.testing.assert_close(gradient("gradient", 0.4, 0.0), (1 - 0.4 * a) ** steps * v, rtol=1e-9, atol=1e-12)
    # x_T = x - T eta x / ||x||, with or without the ascent, which stays on the ray.
    length = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    unit = x / length
    shrink = steps * 0.1 / length
    want = v - shrink * (v - unit * (unit * v).sum(dim=(1, 2, 3), keepdim=True))
    for ascent_radius in (0.0, 0.2):
        torch.testing.assert_close(gradient("unit", 0.1, ascent_radius), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", OPTIONS["direction"])
@pytest.mark.parametrize(("step_rule", "norm"), [("unit", "linf"), ("gradient", "l2"), ("sign", "linf")])
def test_straight_through_ignores_ball_and_box(direction, step_rule, norm):
    """Against steps in plain PyTorch whose projection is the identity for autograd."""
    model = make_purifier(
        conv_denoiser(dtype=torch.float64), step_rule=step_rule, norm=norm, radius=0.05, direction=direction, steps=3
    )
    x = tensor(0, 2, 1, 4, 4)
    leaf = x.clone().requires_grad_()
    point = leaf
    bank = NOISE.sample(x.shape[1:], dtype=x.dtype)[:, None]

    def direction_at(z):
        predicted = model.denoiser((z + 0.3 * bank).flatten(0, 1), 0.3).view(4, *z.shape)
        if direction == "score":
            return 2 * (z - predicted).mean(0)
        ere = (z - predicted).square().sum() / 4
        return torch.autograd.grad(ere, z, create_graph=True)[0]

    def unit(g):
        return g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    for _ in range(3):
        g = direction_at(point + model.ascent_radius * unit(direction_at(point)))
        moved = point - STEP_SIZE[step_rule] * {"unit": unit(g), "gradient": g, "sign": g.sign()}[step_rule]
        offset = moved.detach() - x
        if norm == "linf":
            offset = offset.clamp(-0.05, 0.05)
        else:
            offset = offset * (0.05 / offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
        point = moved + ((x + offset).clamp(0, 1) - moved).detach()
    weight = tensor(7, *x.shape, low=-1)
    (want,) = torch.autograd.grad((point * weight).sum(), leaf)
    got = gradient_of(model, x, "straight_through")
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    if step_rule != "sign":  # whose exact gradient too passes v on as it is, to x_t or to the input
        assert float((got - gradient_of(model, x, "exact")).norm()) > 1e-3 * float(got.norm())


@pytest.mark.parametrize("mode", ["exact", "straight_through", "identity", "unrolled"])
def test_the_value_is_that_without_a_gradient_and_so_is_every_samples_gradient(mode):
    model = make_purifier(conv_denoiser(), steps=3)
    x = tensor(0, 5, 1, 6, 6, dtype=torch.float32)
    want = model(x)
    assert torch.equal(model(x.clone().requires_grad_(), gradient=mode).detach(), want)
    with torch.no_grad():
        assert torch.equal(model(x.clone().requires_grad_(), gradient=mode), want)
    if mode in ("exact", "straight_through"):  # D2 for the gradient
        leaf = x.clone().requires_grad_()
        (whole,) = torch.autograd.grad(model(leaf, gradient=mode).square().sum(), leaf)
        part = x[[4, 1]].clone().requires_grad_()
        (few,) = torch.autograd.grad(model(part, gradient=mode).square().sum(), part)
        assert torch.equal(few, whole[[4, 1]])


def test_only_the_step_points_are_kept():
    """What the graph holds between the passes grows by one image for each step, and by nothing else."""
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32).requires_grad_()
    for steps in (1, 5):
        node = make_purifier(conv_denoiser(), steps=steps)(x).grad_fn
        assert [saved.shape for saved in node.saved_tensors] == [(3, 1, 6, 6), (3, steps + 1, 1, 6, 6)]
        assert node.saved_tensors[0] is x  # the caller's, not a copy
        assert [type(function).__name__ for function, _ in node.next_functions if function] == ["AccumulateGrad"]


def test_inside_another_graph_and_frozen_parameters():
    denoiser = conv_denoiser(dtype=torch.float64).requires_grad_(True)
    model = make_purifier(denoiser, steps=2)
    z = tensor(0, 2, 1, 4, 4, low=-1).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def value(mode):
        return (model(torch.sigmoid(scale * z), gradient=mode).tanh() ** 2).sum()

    got, want = (torch.autograd.grad(value(mode), (z, scale)) for mode in ("exact", "unrolled"))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    value("exact").backward()
    assert all(parameter.grad is None for parameter in denoiser.parameters())


@pytest.mark.parametrize("mode", ["exact", "straight_through"])
@pytest.mark.parametrize("differentiate", [torch.autograd.grad, torch.autograd.backward])
def test_a_second_derivative_of_the_exact_gradient_is_refused(mode, differentiate):
    """Also where the loss is linear in the result, so that no incoming gradient requires a gradient."""
    model = make_purifier(conv_denoiser(), steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    for loss in (torch.sum, lambda result: result.square().sum()):
        (first,) = torch.autograd.grad(loss(model(x, gradient=mode)), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated again with gradient='unrolled' only"):
            differentiate(first.sum(), inputs=x)


def test_a_second_derivative_of_the_unrolled_gradient():
    x = tensor(0, 1, 1, 4, 4).requires_grad_()
    model = make_purifier(conv_denoiser(dtype=torch.float64), steps=1, step_rule="gradient", radius=math.inf)
    weight = tensor(7, *x.shape, low=-1)

    def slope(at):
        (first,) = torch.autograd.grad(model(at, gradient="unrolled").square().sum(), at, create_graph=True)
        return (first * weight).sum()

    (got,) = torch.autograd.grad(slope(x), x)
    direction, step = tensor(8, *x.shape, low=-1), 1e-5
    near = [slope((x + sign * step * direction).detach().requires_grad_()).item() for sign in (1, -1)]
    assert float((got * direction).sum()) == pytest.approx((near[0] - near[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_networks_with_attention_need_no_setting(mode):
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    before = torch.backends.cuda.flash_sdp_enabled()
    model = make_purifier(fixed_weights(AttentionDenoiser()), steps=2, radius=math.inf)
    single = gradient_of(model, x, mode)
    assert torch.backends.cuda.flash_sdp_enabled() == before
    double = gradient_of(
        make_purifier(fixed_weights(AttentionDenoiser()).double(), steps=2, radius=math.inf), x.double(), mode
    )
    assert float((single - double).norm()) <= 1e-3 * float(double.norm())
    leaf = x.clone().requires_grad_()
    ere = ps.expected_reconstruction_error(model.denoiser, leaf, 0.3, NOISE).sum()
    (first,) = torch.autograd.grad(ere, leaf, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), leaf)[0].isfinite().all()


def test_a_denoiser_without_a_derivative_is_refused():
    @torch.no_grad()
    def blind(y, sigma):
        return 0.5 * y

    model = make_purifier(blind, direction="score", steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    with pytest.raises(ValueError, match="denoiser must be differentiable in its input"):
        model(x)
    assert model(x.detach()).shape == x.shape


def test_the_backward_pass_runs_as_the_forward_pass_did():
    """Under autocast, although the backward pass is called outside of it."""
    net = conv_denoiser().net
    model = make_purifier(lambda y, sigma: y - 0.3 * net(y), steps=3, radius=math.inf)
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    gradients = []
    for mode in ("exact", "unrolled"):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            purified = model(leaf, gradient=mode)
        gradients.append(torch.autograd.grad(purified.sum(), leaf)[0])
    # Both in bfloat16; in float32 the backward pass would be ten times further away.
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-3 * float(gradients[1].norm())


class DrawsWhenDifferentiatedTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, what):
        ctx.what = what
        return 0.9 * y

    @staticmethod
    def backward(ctx, v):
        return Spoiled.apply(v, ctx.what), None


class Spoiled(torch.autograd.Function):
    """The identity, whose derivative draws a random number or is NaN."""

    @staticmethod
    def forward(ctx, v, what):
        ctx.what = what
        return 0.9 * v

    @staticmethod
    def backward(ctx, v):
        return (torch.rand_like(v) if ctx.what == "random" else v * math.nan), None


@pytest.mark.parametrize(
    ("what", "message"), [("random", "drew random numbers"), ("nan", "the gradient through the purifier is NaN")]
)
def test_what_goes_wrong_in_the_backward_pass_only_is_noticed(what, message):
    model = make_purifier(lambda y, sigma: DrawsWhenDifferentiatedTwice.apply(y, what), steps=1, radius=math.inf)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    before = torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match=message):
        model(x).sum().backward()
    assert torch.is_grad_enabled() == before


@pytest.mark.parametrize("mode", ps.stepping.GRADIENTS)
def test_results_can_be_changed_in_place(mode):
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32).requires_grad_()
    model = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=1)
    (want,) = torch.autograd.grad((2 * model(x, gradient=mode)).sum(), x)
    (got,) = torch.autograd.grad(model(x, gradient=mode).mul_(2).sum(), x)
    assert torch.equal(got, want)
