"""DiffPure with the discretization of its authors' code (Nie et al., ICML 2022)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from pursamere._validation import check_positive
from pursamere.denoisers.protocol import Denoiser
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode, in_pixel_range

from ._diffusion import DiffusionPurifier
from ._levels import nearest_level

__all__ = ["PublishedDiffPure"]

_LAST_TIME = 1e-5


class _Level(NamedTuple):
    """At one time: z = alpha * image + noise of ``variance``, in [-1, 1]; beta; and sigma in pixel units."""

    alpha: float
    variance: float
    beta: float
    sigma: float


class PublishedDiffPure(DiffusionPurifier):
    """DiffPure as published: Euler-Maruyama steps of the reverse variance-preserving SDE, no final denoising.

    In the range [-1, 1], with beta(t) = beta_min + t (beta_max - beta_min) and alpha(t) = exp(-1/2 int_0^t beta), the
    image becomes z = alpha z + sqrt(1 - alpha^2) xi at t = ``time`` and then, with h = ``time / steps``,

        z' = z + h beta (z / 2 + s) + sqrt(h beta) xi,   s = (alpha D - z) / (1 - alpha^2),

    where D is the denoised image, alpha and beta are taken at t, and t' = t - h. As in the authors' code, the last step
    ends at time 1e-5 and adds noise too. The result is clipped to [0, 1].

    The defaults are those published for CIFAR-10 at Linf 8/255. ``docs/evaluation.md`` compares the errors on a
    Gaussian prior with those of :class:`pursamere.baselines.DiffPure`, which takes a fifth of the steps. As there, all
    images of a call share their noise. The authors' code adds the initial noise by a discrete schedule of a thousand
    timesteps, which has 0.4 % less noise.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`. With the defaults, it is used at noise levels from 0.17 to
            0.005 in pixel units, clipped to its ``sigma_range``.
        time: t*, up to which noise is added, at most 1.
        steps: number of steps, from 1 to 100,000, each longer than 1e-5.
        beta_min: beta at time 0, positive.
        beta_max: beta at time 1, at least ``beta_min``.
        noise: gives the seed; a step takes one draw.
        fresh_noise: whether every call uses new noise, see :class:`pursamere.baselines.DiffPure`.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
        execution: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("time", "steps", "beta_min", "beta_max", "random")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        time: float = 0.1,
        steps: int = 100,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        noise: GaussianNoise | None = None,
        fresh_noise: bool = False,
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
        super().__init__(denoiser, fresh_noise=fresh_noise, **shared)
        self.time = check_positive("time", time)
        if not _LAST_TIME * steps < self.time <= 1:
            raise ValueError(
                f"time must be more than {_LAST_TIME:g} a step, and at most 1, got {time} for {steps} steps"
            )
        self.beta_min = check_positive("beta_min", beta_min)
        self.beta_max = check_positive("beta_max", beta_max)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_max must be at least beta_min = {beta_min}, got {beta_max}")

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        return NetworkPasses(self.steps, 0)

    def times(self) -> list[float]:
        """Return the steps + 1 times, from ``time`` to 1e-5."""
        return [*(self.time * (1 - t / self.steps) for t in range(self.steps)), _LAST_TIME]

    def _level(self, time: float) -> _Level:
        growth = self.beta_max - self.beta_min
        total = self.beta_min * time + growth * time**2 / 2
        variance = -math.expm1(-total)
        sigma = math.sqrt(math.expm1(total)) / 2  # relative to the image; [-1, 1] is two units wide
        return _Level(math.exp(-total / 2), variance, self.beta_min + growth * time, sigma)

    # The state is (z + 1) / 2, in pixel units.

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        level = self._level(self.time)
        return self._noisy(0.5 + level.alpha * (x0 - 0.5), math.sqrt(level.variance) / 2, mode, 0)

    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        time, until = self.times()[t : t + 2]
        level = self._level(time)
        centered = state - 0.5
        denoised = self._denoised(t, 0.5 + centered / level.alpha, mode, differentiable=mode.create_graph and t == 0)
        score = (level.alpha * (denoised - 0.5) - centered) / level.variance
        growth = level.beta * (time - until)
        return self._noisy(state + growth * (centered / 2 + score), math.sqrt(growth) / 2, mode, t + 1)

    def _denoised(self, t: int, y: Tensor, mode: StepMode, *, differentiable: bool) -> Tensor:
        sigma = nearest_level(self._level(self.times()[t]).sigma, self.denoiser)
        return denoise(self.denoiser, y, sigma, mode.run, differentiable=differentiable)

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The denoised image instead of the step, whose identity part would hide errors.
        return (self._denoised(t, images, mode, differentiable=mode.create_graph),)

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        return in_pixel_range(state, mode)
