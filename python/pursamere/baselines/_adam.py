"""Adam on a loss of the image, in differentiable steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pursamere._validation import check_positive
from pursamere.denoisers.protocol import Denoiser
from pursamere.descent import in_pixel_range
from pursamere.noise import GaussianNoise
from pursamere.objective import NOT_DIFFERENTIABLE
from pursamere.stepping import IterativePurifier, StepMode

from ._randomness import single_draw

__all__ = ["AdamPurifier", "Loss", "mean_square"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # those of torch.optim.Adam


class Loss(NamedTuple):
    """A loss and the network's input, through which the loss must depend on the network."""

    value: Tensor  # [m]
    noisy: Tensor  # [m, C, H, W]


class AdamPurifier(IterativePurifier):
    """Adam (Kingma and Ba, 2015) on :meth:`_loss`; the state [m, 3, C, H, W] is the image and its two moments.

    Values are those of torch.optim.Adam, and the derivative of a step is finite everywhere. Unless epsilon dominates,
    the first step is a sign, whose derivative is zero, and later steps are close to one, so little of the exact
    gradient passes through the steps. The state is at least float32, also for float16 and bfloat16 images.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        learning_rate: learning rate of Adam, positive.
        noise: gives the seed.
        **options: for :class:`pursamere.IterativePurifier`.
    """

    def __init__(
        self, denoiser: Denoiser, *, learning_rate: float, noise: GaussianNoise | None, **options: Any
    ) -> None:
        super().__init__(denoiser, noise=single_draw(noise), **options)
        self.learning_rate = check_positive("learning_rate", learning_rate)

    @abstractmethod
    def _loss(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Loss:
        """Return the loss of every image of a micro-batch in step ``t``."""

    def _moved(self, x: Tensor, x0: Tensor, change: Tensor, mode: StepMode) -> Tensor:
        """Return ``x - change``; subclasses may project it onto a ball around ``x0``."""
        return x - change

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        x = x0.to(torch.promote_types(x0.dtype, torch.float32))
        return torch.stack((x, torch.zeros_like(x), torch.zeros_like(x)), dim=1)

    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        x, first, second = state.unbind(1)
        gradient = self._gradient(t, x.to(x0.dtype), x0, mode).to(x.dtype)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
        mean, variance = (moment / (1 - beta ** (t + 1)) for moment, beta in zip((first, second), _BETAS, strict=True))
        change = self.learning_rate * mean / (_root(variance) + _EPSILON)
        return torch.stack((self._moved(x, x0.to(x.dtype), change, mode), first, second), dim=1)

    def _gradient(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        point = x if mode.create_graph else x.detach().requires_grad_()
        with torch.enable_grad():
            value, noisy = self._loss(t, point, x0, mode)
            gradient, through_network = torch.autograd.grad(
                value.sum(), (point, noisy), create_graph=mode.create_graph, allow_unused=True
            )
        if through_network is None:
            raise ValueError(NOT_DIFFERENTIABLE)
        return gradient

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The gradient instead of the step, whose identity part would hide errors. The input x0 is a constant, since
        # only a first derivative passes through it.
        return (self._gradient(t, images, torch.full_like(images, 0.5), mode),)

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        return in_pixel_range(state[:, 0].to(x0.dtype), mode.projected)


def _root(variance: Tensor) -> Tensor:
    """Return the square root, with derivative 0 at 0 instead of infinity.

    A variance is 0 only if all gradients were 0. Then the mean is 0 too, and zero times infinity would be NaN.
    """
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean over pixels, [m]."""
    return difference.square().flatten(1).mean(1)
