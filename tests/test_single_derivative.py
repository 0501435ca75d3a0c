"""Networks whose graph can be run once, and not be differentiated again: checkpointed and compiled ones."""

import pytest
import torch
from cases import tensor
from nets import conv_denoiser
from torch import nn
from torch.utils.checkpoint import checkpoint

import pursamere as ps


class CheckpointFunction(torch.autograd.Function):
    """As in guided-diffusion (nn.py), whose attention blocks always go through it."""

    @staticmethod
    def forward(ctx, run_function, length, *args):
        ctx.run_function = run_function
        ctx.input_tensors = list(args[:length])
        ctx.input_params = list(args[length:])
        with torch.no_grad():
            return ctx.run_function(*ctx.input_tensors)

    @staticmethod
    def backward(ctx, *output_grads):
        ctx.input_tensors = [x.detach().requires_grad_(True) for x in ctx.input_tensors]
        with torch.enable_grad():
            shallow_copies = [x.view_as(x) for x in ctx.input_tensors]
            output_tensors = ctx.run_function(*shallow_copies)
        input_grads = torch.autograd.grad(
            output_tensors, ctx.input_tensors + ctx.input_params, output_grads, allow_unused=True
        )
        del ctx.input_tensors
        del ctx.input_params
        return (None, None, *input_grads)


class Checkpointed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner = conv_denoiser().requires_grad_()
        self.how = how

    def forward(self, y, sigma):
        if self.how == "guided-diffusion":
            return y + sigma * CheckpointFunction.apply(self.inner.net, 1, y - 0.5, *self.inner.parameters())
        return checkpoint(self.inner, y, sigma, use_reentrant=self.how == "reentrant")


def denoiser(how):
    if how == "compiled":
        torch._dynamo.reset()
        return torch.compile(conv_denoiser(), backend="aot_eager")
    return Checkpointed(how)


def gradient(purifier, gradient="exact"):
    x = tensor(0, 2, 1, 6, 6, low=0.2, high=0.8).float().requires_grad_()
    return torch.autograd.grad((purifier(x, gradient=gradient) ** 2).sum(), x)[0]


SETTINGS = {"sigma": 0.2, "steps": 2, "radius": 0.1, "noise": ps.GaussianNoise(draws=2)}
KINDS = {
    "score": lambda network: ps.Purifier(network, direction="score", **SETTINGS),
    "DiffPure": lambda network: ps.baselines.DiffPure(network, steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guided-diffusion", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_derivative_is_enough(how, kind):
    purifier, plain = (KINDS[kind](network) for network in (denoiser(how), conv_denoiser()))
    for mode in ("exact", "straight_through", "unrolled"):
        torch.testing.assert_close(gradient(purifier, mode), gradient(plain, mode), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guided-diffusion", "compiled", "reentrant"])
def test_two_derivatives_are_refused(how):
    purifier = ps.Purifier(denoiser(how), direction="ere", **SETTINGS)
    for mode in ("exact", "unrolled"):
        with pytest.raises(RuntimeError, match=r"denoiser[\s\S]*uncompiled[\s\S]*use_reentrant=False"):
            gradient(purifier, mode)
    if how != "reentrant":
        x = tensor(0, 2, 1, 6, 6, low=0.2, high=0.8).float()
        torch.testing.assert_close(purifier(x), ps.Purifier(conv_denoiser(), **SETTINGS)(x))


def test_the_remedy_works():
    got, want = (gradient(ps.Purifier(network, **SETTINGS)) for network in (denoiser("not reentrant"), conv_denoiser()))
    torch.testing.assert_close(got, want)


def test_the_check_costs_no_backward_pass():
    """A step's backward pass runs the network's once."""
    passes = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return 0.9 * y

        @staticmethod
        def backward(ctx, v):
            passes.append(1)
            return 0.9 * v

    options = {"direction": "score", "ascent_radius": 0.0, "micro_batch": 1}
    purifier = ps.Purifier(lambda y, sigma: Counted.apply(y), **options, **SETTINGS)
    gradient(purifier)
    passes.clear()
    gradient(purifier)
    assert len(passes) == purifier.steps * 2  # images
