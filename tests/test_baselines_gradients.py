"""Gradients of the baselines against autograd and finite differences."""

import math

import pytest
import torch
from baseline_cases import ADAM, EVERY, MODELS, B, gradient_of, mixture
from cases import tensor
from nets import AttentionDenoiser, conv_denoiser, fixed_weights


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
