"""Likelihood maximization: Adam on the reconstruction error with random noise (Chen et al., 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pursamere import functional
from pursamere._validation import check_ball_radius, check_choice
from pursamere.denoisers.protocol import Denoiser
from pursamere.descent import descend
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode

from ._adam import AdamPurifier, Loss, mean_square
from ._levels import noise_level
from ._randomness import derived, uniform

__all__ = ["LikelihoodMaximization"]


class LikelihoodMaximization(AdamPurifier):
    """Adam on the image x in a ball around the input, with new noise and a new noise level in every step.

    The loss, averaged over pixels, is

        (D(x + sigma_t xi, sigma_t) - x)^2,   sigma_t uniform in [sigma_min, sigma_max],

    one draw of the expected reconstruction error, which bounds the diffusion model's likelihood of x. This is our
    reading of the public code of "Robust classification via a single diffusion model" (Chen et al., arXiv 2305.15241);
    the defaults are its values, in pixel units. The image is projected onto the ball and [0, 1] after every step, which
    Adam's moments do not take into account.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma_min: smallest standard deviation of the noise, in pixel units, positive. Default: 0.2, clipped to the
            denoiser's ``sigma_range``.
        sigma_max: largest one, at least ``sigma_min``. Default: 0.3, clipped likewise.
        steps: number of steps, from 0 to 100,000.
        learning_rate: learning rate of Adam, about the change of a pixel in a step; positive.
        radius: radius of the ball around the input, in pixel units; at most 1 for "linf", or
            infinity for no ball, only the pixel range.
        norm: norm of the ball, "linf" or "l2".
        noise: gives the seed; a step takes one draw.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
        execution: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("sigma_min", "sigma_max", "steps", "learning_rate", "radius", "norm")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        steps: int = 5,
        learning_rate: float = 0.05,
        radius: float = float("inf"),
        norm: str = "linf",
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
        self.sigma_min = noise_level("sigma_min", sigma_min, denoiser, default=0.2)
        self.sigma_max = noise_level("sigma_max", sigma_max, denoiser, default=0.3)
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min must be at most sigma_max = {self.sigma_max}, got {self.sigma_min}")
        self.norm = check_choice("norm", norm, functional.NORMS)
        self.radius = check_ball_radius(radius, norm)

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        return NetworkPasses(self.steps, self.steps)

    def _loss(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Loss:
        sigma = uniform(mode.noise, t, 0, low=self.sigma_min, high=self.sigma_max)
        noisy = functional.perturb(x, sigma, derived(mode.noise, t, 1))[0]
        denoised = denoise(self.denoiser, noisy, sigma, mode.run, twice=mode.create_graph)
        return Loss(mean_square(denoised - x), noisy)

    def _moved(self, x: Tensor, x0: Tensor, change: Tensor, mode: StepMode) -> Tensor:
        gradient = change.unsqueeze(0)  # of one draw
        return descend(
            x,
            x0,
            gradient,
            None,
            mode.projected,
            step_rule="gradient",
            step_size=1.0,
            norm=self.norm,
            radius=self.radius,
        )
