"""ScoreOpt-N: optimize the noisy image until the denoiser recovers its noise (Zhang, Luo and Zhang, NeurIPS 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pursamere import functional
from pursamere.denoisers.protocol import Denoiser
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode, in_pixel_range

from ._adam import AdamPurifier, Loss, mean_square
from ._levels import noise_level
from ._randomness import derived

__all__ = ["ScoreOptN"]


class ScoreOptN(AdamPurifier):
    """Adam on the noisy image y, which starts as x0 + sigma xi with one fixed xi; D(y, sigma) is the result.

    The loss, averaged over pixels, is

        ((y - D(y, sigma)) / sigma - xi)^2.

    The result is clipped to [0, 1]; nothing else keeps it near the input. This is our reading of the authors' public
    code. The defaults are its values for CIFAR-10, in pixel units.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma: standard deviation of the noise, in pixel units. Default: 0.25, clipped to the denoiser's
            ``sigma_range``.
        steps: number of steps, from 0 to 100,000; with 0, the noisy input is denoised once.
        learning_rate: learning rate of Adam, about the change of a pixel in a step; positive.
        noise: gives the seed; one draw is taken.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
        execution: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("sigma", "steps", "learning_rate")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float | None = None,
        steps: int = 20,
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

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        return NetworkPasses(self.steps + 1, self.steps)

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        return super()._initial(functional.perturb(x0, self.sigma, derived(mode.noise, 0))[0], mode)

    def _loss(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Loss:
        noise = derived(mode.noise, 0).sample(x.shape[1:], x.device, x.dtype)
        noisy = x.view_as(x)  # the network's input, distinct from the x that it is compared with
        denoised = denoise(self.denoiser, noisy, self.sigma, mode.run, twice=mode.create_graph)
        return Loss(mean_square((x - denoised) / self.sigma - noise), noisy)

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        y = state[:, 0].to(x0.dtype)
        denoised = denoise(self.denoiser, y, self.sigma, mode.run, differentiable=mode.create_graph)
        return in_pixel_range(denoised, mode)
