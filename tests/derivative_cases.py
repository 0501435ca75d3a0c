"""Denoisers whose derivatives autograd takes rightly and wrongly."""

import torch
from cases import tensor
from nets import fixed_weights
from torch import nn

import pursamere as ps

NOISE = ps.GaussianNoise(seed=2, draws=4)


def derivative_of_silu(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


class Silu(torch.autograd.Function):
    """Right twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, v):
        return v * derivative_of_silu(*ctx.saved_tensors)


class SiluDetached(Silu):
    @staticmethod
    def backward(ctx, v):
        return (v * derivative_of_silu(*ctx.saved_tensors)).detach()


class SiluOnce(Silu):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        return v * derivative_of_silu(*ctx.saved_tensors)


class SiluIntermediate(Silu):
    """Saves what it computed where gradients are off, as many fused kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(derivative_of_silu(x))
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, v):
        return v * ctx.saved_tensors[0]


def only_float32(function):
    """The function, which takes no other dtype, as hand-written kernels often do."""

    class OnlyFloat32(function):
        @staticmethod
        def forward(ctx, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return function.forward(ctx, x)

    return OnlyFloat32


class Denoiser(nn.Module):
    def __init__(self, activation):
        super().__init__()
        sizes = ((1, 8), (8, 8), (8, 1))
        self.convolutions = nn.ModuleList([nn.Conv2d(*size, 3, padding=1) for size in sizes])
        self.activation = activation

    def forward(self, y, sigma):
        first, second, third = self.convolutions
        return y + sigma * third(self.activation(second(nn.functional.silu(first(y - 0.5)))))


def make_purifier(activation, direction="ere", wrap=lambda net: net, **options):
    denoiser = wrap(fixed_weights(Denoiser(activation)))
    return ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=2, noise=NOISE, direction=direction, **options)


def weights(model):
    function = model.denoiser
    net = function if isinstance(function, nn.Module) else function.__closure__[0].cell_contents
    return net.parameters()


RIGHT = {
    "silu": nn.functional.silu,
    "relu": torch.relu,
    "custom": Silu.apply,
    "in float32 inside": lambda x: nn.functional.silu(x.float()).to(x.dtype),
    "in its weights' dtype": lambda x: x * torch.ones(()).to(x.dtype),
}
WRONG_TWICE = {"detached": SiluDetached.apply, "once": SiluOnce.apply, "intermediate": SiluIntermediate.apply}
X = tensor(0, 2, 1, 8, 8, dtype=torch.float32)
