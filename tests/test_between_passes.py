"""What may change between the forward and the backward pass of an exact gradient: nothing that it is computed from."""

import copy

import pytest
import torch
from cases import tensor
from nets import ConvDenoiser, conv_denoiser, fixed_weights

import pursamere as ps

NOISE = ps.GaussianNoise(seed=2, draws=4)


def make_purifier(denoiser, **options):
    return ps.Purifier(denoiser, sigma=0.3, step_size=0.3, noise=NOISE, **options)


def gradient_of(model, x, mode):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf, gradient=mode).sum(), leaf)[0]


def _write(model):
    with torch.no_grad():
        next(model.denoiser.parameters()).mul_(1.1)


def _replace_memory(model):
    parameter = next(model.denoiser.parameters())
    parameter.data = 1.1 * parameter.data


def _assign(model):
    model.denoiser.load_state_dict(copy.deepcopy(model.denoiser).state_dict(), assign=True)


def _replace_denoiser(model):
    model.denoiser = copy.deepcopy(model.denoiser)


def _replace_module(model):
    model.denoiser.net[1] = torch.nn.ReLU()  # which has no parameters


CHANGES = [_write, _replace_memory, _assign, _replace_denoiser, _replace_module]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("mode", ["exact", "straight_through"])
def test_a_denoiser_that_changes_between_the_passes_is_refused(mode, change):
    model = make_purifier(conv_denoiser(), steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    purified = model(x, gradient=mode)
    change(model)
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        purified.sum().backward()


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_functional_call_gives_the_gradient_of_the_weights_that_it_used_or_none(mode):
    model, other = make_purifier(conv_denoiser(), steps=2), make_purifier(fixed_weights(ConvDenoiser(), 5), steps=2)
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    result = torch.func.functional_call(model, dict(other.named_parameters()), (leaf, mode))
    assert torch.equal(result.detach(), other(x))
    if mode == "unrolled":
        (got,) = torch.autograd.grad(result.sum(), leaf)
        want = gradient_of(other, x, mode)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
            result.sum().backward()


@pytest.mark.parametrize(
    ("name", "value"), [("sigma", 0.4), ("step_size", 0.2), ("direction", "score"), ("steps", 2), ("radius", 0.01)]
)
def test_a_setting_that_changes_between_the_passes_is_refused(name, value):
    model = make_purifier(conv_denoiser(), steps=3)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    purified = model(x)
    setattr(model, name, value)
    with pytest.raises(RuntimeError, match=f"{name} was changed from .* between the forward and backward pass"):
        purified.sum().backward()


def test_another_noise_between_the_passes_is_none_of_the_calls_business():
    model = make_purifier(conv_denoiser(), steps=2)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32)
    want = gradient_of(model, x, "exact")
    leaf = x.clone().requires_grad_()
    purified = model(leaf)
    model.noise = ps.GaussianNoise(seed=9, draws=2)
    assert torch.equal(torch.autograd.grad(purified.sum(), leaf)[0], want)
