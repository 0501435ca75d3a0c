"""Likelihood maximization: Adam on the reconstruction error with random noise (Chen et al., 2023)."""

from __future__ import annotations

from torch import Tensor

from pursamere import functional
from pursamere._validation import check_choice, check_nonnegative
from pursamere.denoisers.protocol import Denoiser
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode, descend

from ._adam import AdamPurifier, Loss, mean_square
from ._levels import noise_level
from ._randomness import derived, uniform


class LikelihoodMaximization(AdamPurifier):
    """Adam on the image x, in a neighborhood of the input, with another noise and noise level every step.

    The loss, averaged over pixels, is

        (D(x + sigma_t xi, sigma_t) - x)^2,   sigma_t uniform in [sigma_min, sigma_max],

    one draw of the expected reconstruction error, which bounds the likelihood that the diffusion model gives to x. It
    is the purification by likelihood maximization of "Robust classification via a single diffusion model" (Chen et
    al., arXiv 2305.15241), as we read the authors' public code, whose values the defaults are, in pixel units. The
    image is put back into the ball and [0, 1] after every step; Adam's moments know nothing of that.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma_min: the smallest standard deviation of the noise, in pixel units, positive; by default 0.2, clipped to
            the denoiser's ``sigma_range``.
        sigma_max: the largest, at least ``sigma_min``; by default 0.3, clipped alike.
        steps: number of steps, from 0 to 100,000.
        learning_rate: of Adam, about the change of a pixel in a step; positive.
        radius: of the neighborhood, in pixel units; infinity for none but the pixel range.
        norm: shape of the neighborhood, "linf" or "l2".
        noise: gives the seed; a step takes one draw.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
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
    ) -> None:
        super().__init__(
            denoiser,
            steps=steps,
            learning_rate=learning_rate,
            noise=noise,
            micro_batch=micro_batch,
            invariance=invariance,
        )
        self.sigma_min = noise_level("sigma_min", sigma_min, denoiser, default=0.2)
        self.sigma_max = noise_level("sigma_max", sigma_max, denoiser, default=0.3)
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min must be at most sigma_max = {self.sigma_max}, got {self.sigma_min}")
        self.radius = check_nonnegative("radius", radius, infinite=True)
        self.norm = check_choice("norm", norm, functional.NORMS)

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes that purifying one image takes, without those for its gradient."""
        return NetworkPasses(self.steps, self.steps)

    def _loss(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Loss:
        sigma = uniform(mode.noise, t, 0, low=self.sigma_min, high=self.sigma_max)
        noisy = functional.perturb(x, sigma, derived(mode.noise, t, 1))[0]
        denoised = denoise(self.denoiser, noisy, sigma, twice=mode.create_graph)
        return Loss(mean_square(denoised - x), noisy)

    def _moved(self, x: Tensor, x0: Tensor, change: Tensor, mode: StepMode) -> Tensor:
        gradient = change.unsqueeze(0)  # of one draw
        return descend(
            x, x0, gradient, None, mode, step_rule="gradient", step_size=1.0, norm=self.norm, radius=self.radius
        )
