"""Denoisers from functions that predict the score or the noise.

Both use Tweedie's formula: if ``y = x + sigma * xi`` with ``xi ~ N(0, I)`` and ``s(y, sigma)`` is the score, the
gradient of the log density of ``y``, then the posterior mean of ``x`` is ``y + sigma^2 * s(y, sigma)``. The posterior
mean of the noise ``xi`` is ``eps = -sigma * s``, hence also ``y - sigma * eps``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from pursamere._validation import check_positive, check_tensor
from pursamere.denoisers.protocol import Prediction

PredictionFunction = Callable[[Tensor, float], Tensor]


class _FromPrediction(nn.Module):
    """A denoiser around ``fn``, which is registered as a submodule if it is an ``nn.Module``."""

    prediction: ClassVar[Prediction]

    def __init__(self, name: str, fn: PredictionFunction) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"{name} must be callable as {name}(y, sigma), got {type(fn).__name__}")
        self.name = name
        self.fn = fn

    def predict(self, y: Tensor, sigma: float) -> Tensor:
        """Return the prediction [N, C, H, W] at ``y`` [N, C, H, W] for noise of standard deviation ``sigma``."""
        check_tensor("y", y, rank=4)
        output = self.fn(y, check_positive("sigma", sigma))
        check_tensor(f"the output of {self.name}", output)
        if output.shape != y.shape:
            raise ValueError(
                f"the output of {self.name} must have the shape of y, {tuple(y.shape)}, got {tuple(output.shape)}"
            )
        return output


class _FromScore(_FromPrediction):
    prediction = "score"

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        return torch.add(y, self.predict(y, sigma), alpha=sigma * sigma).to(y.dtype)


class _FromNoisePrediction(_FromPrediction):
    prediction = "noise"

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        return torch.sub(y, self.predict(y, sigma), alpha=sigma).to(y.dtype)


def from_score(score_fn: PredictionFunction) -> nn.Module:
    """Return the denoiser ``D(y, sigma) = y + sigma^2 * score_fn(y, sigma)`` (Tweedie's formula).

    Args:
        score_fn: ``(y [N, C, H, W] in pixel space, sigma float) -> [N, C, H, W]``, the gradient with respect to ``y``
            of the log density of images with Gaussian noise of standard deviation ``sigma``, in pixel units. Pass
            an ``nn.Module`` rather than one of its methods, so that its parameters are registered.

    Returns:
        An ``nn.Module`` with ``prediction = "score"`` and ``predict(y, sigma)``; its output has the dtype of ``y``.

    Raises:
        TypeError: ``score_fn`` is not callable. Calling the denoiser raises it if ``y`` or the output is not a
            floating-point tensor.
        ValueError: when calling the denoiser, if ``y`` does not have rank 4, ``sigma`` is not positive and finite, or
            the output does not have the shape of ``y``.
    """
    return _FromScore("score_fn", score_fn)


def from_noise_prediction(noise_fn: PredictionFunction) -> nn.Module:
    """Return the denoiser ``D(y, sigma) = y - sigma * noise_fn(y, sigma)`` (Tweedie's formula).

    Args:
        noise_fn: ``(y [N, C, H, W] in pixel space, sigma float) -> [N, C, H, W]``, the expected standard normal noise
            ``xi`` given ``y = x + sigma * xi``. Pass an ``nn.Module`` rather than one of its methods, so that
            its parameters are registered.

    Returns:
        An ``nn.Module`` with ``prediction = "noise"`` and ``predict(y, sigma)``; its output has the dtype of ``y``.

    Raises:
        TypeError: ``noise_fn`` is not callable. Calling the denoiser raises it if ``y`` or the output is not a
            floating-point tensor.
        ValueError: when calling the denoiser, if ``y`` does not have rank 4, ``sigma`` is not positive and finite, or
            the output does not have the shape of ``y``.
    """
    return _FromNoisePrediction("noise_fn", noise_fn)
