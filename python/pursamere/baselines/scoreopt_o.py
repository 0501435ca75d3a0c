"""ScoreOpt-O: optimize the image until the denoiser leaves it unchanged (Zhang, Luo and Zhang, NeurIPS 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pursamere import functional
from pursamere._validation import check_nonnegative
from pursamere.denoisers.protocol import Denoiser, sigma_range_of
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode

from ._adam import AdamPurifier, Loss, mean_square
from ._levels import noise_level
from ._randomness import derived, uniform

__all__ = ["ScoreOptO"]


class ScoreOptO(AdamPurifier):
    """Adam on the image x, which starts as the input x0, with new noise and a new noise level in every step.

    The loss, averaged over pixels, is

        (D(x + sigma_t xi, sigma_t) - x)^2
            + regularization * (D(x + sigma_t xi, sigma_t) - D(x0 + sigma_t xi', sigma_t))^2,

    with sigma_t uniform in ``sigma`` ± ``spread``. The result is clipped to [0, 1]; nothing else keeps it near the
    input. This is our reading of the authors' public code; the second term, commented out there, is their score
    regularization. The defaults are its values for CIFAR-10, in pixel units.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma: mean standard deviation of the noise, in pixel units. Default: 0.25, clipped to the denoiser's
            ``sigma_range``.
        spread: largest distance of sigma_t from ``sigma``, at least 0 and less than ``sigma``. Default: 0.05, or what
            the denoiser's ``sigma_range`` allows.
        regularization: weight of the second term, at least 0; if positive, a step takes another network pass.
        steps: number of steps, from 0 to 100,000.
        learning_rate: learning rate of Adam, about the change of a pixel in a step; positive.
        noise: gives the seed; a step takes one draw.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
        execution: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("sigma", "spread", "regularization", "steps", "learning_rate")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float | None = None,
        spread: float | None = None,
        regularization: float = 0.0,
        steps: int = 5,
        learning_rate: float = 0.05,
        noise: GaussianNoise | None = None,
        micro_batch: int | None = None,
        invariance: str = "warn",
        execution: Execution | None = None,
    ) -> None:
        shared: dict[str, Any] = {
            "steps": steps,
            "noise": noise,
            "micro_batch": micro_batch,
            "invariance": invariance,
            "execution": execution,
        }
        super().__init__(denoiser, learning_rate=learning_rate, **shared)
        self.sigma = noise_level("sigma", sigma, denoiser, default=0.25)
        if spread is None:
            low, high = sigma_range_of(denoiser)
            spread = max(0.0, min(0.05, self.sigma - low, high - self.sigma))
        self.spread = check_nonnegative("spread", spread)
        if self.spread >= self.sigma:
            raise ValueError(f"spread must be less than sigma = {self.sigma}, got {spread}")
        self.regularization = check_nonnegative("regularization", regularization)

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        return NetworkPasses(self.steps * (2 if self.regularization > 0 else 1), self.steps)

    def _loss(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Loss:
        sigma = uniform(mode.noise, t, 0, low=self.sigma - self.spread, high=self.sigma + self.spread)
        noisy = functional.perturb(x, sigma, derived(mode.noise, t, 1))[0]
        denoised = denoise(self.denoiser, noisy, sigma, mode.run, twice=mode.create_graph)
        loss = mean_square(denoised - x)
        if self.regularization > 0:
            with torch.set_grad_enabled(mode.create_graph):
                noisy_input = functional.perturb(x0, sigma, derived(mode.noise, t, 2))[0]
                of_input = denoise(self.denoiser, noisy_input, sigma, mode.run)
            loss = loss + self.regularization * mean_square(denoised - of_input)
        return Loss(loss, noisy)
