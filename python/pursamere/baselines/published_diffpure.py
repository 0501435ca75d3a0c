"""DiffPure in the discretization of its authors' program (Nie et al., ICML 2022)."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pursamere._validation import check_integer, check_positive
from pursamere.denoisers.protocol import Denoiser
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode, in_pixel_range

from ._diffusion import DiffusionPurifier
from ._levels import nearest_level

LAST_TIME = 1e-5


class _Level(NamedTuple):
    """At a time, z = alpha * image + noise of this variance, both in [-1, 1]; the drift's rate, and sigma in pixels."""

    alpha: float
    variance: float
    beta: float
    sigma: float


class PublishedDiffPure(DiffusionPurifier):
    """DiffPure as published: Euler-Maruyama's steps on the reverse variance-preserving SDE, no denoising at the end.

    In the range [-1, 1], with beta(t) = beta_min + t (beta_max - beta_min) and alpha(t) = exp(-1/2 int_0^t beta), the
    image becomes z = alpha z + sqrt(1 - alpha^2) xi at the time t = ``time``, and then, with h = ``time / steps``,

        z' = z + h beta (z / 2 + s) + sqrt(h beta) xi,   s = (alpha D - z) / (1 - alpha^2),

    where D is the denoised image, alpha and beta are those of the time t before the step, and t' = t - h. As in the
    authors' program the last step ends at the time 1e-5 and adds noise too. The result is clipped to [0, 1].

    The defaults are the published ones for CIFAR-10 at Linf 8/255. ``docs/evaluation.md`` compares the errors on a
    Gaussian prior with those of :class:`pursamere.baselines.DiffPure`, which takes a fifth of the steps. Here all
    images of a call share the noise, as there. The authors' program adds the initial noise by the discrete schedule of
    a thousand timesteps, which has 0.4 % less of it.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`. By default it is asked at noise levels from 0.17 to 0.005 in
            pixel units; outside its ``sigma_range``, at the nearest level in it.
        time: t*, up to which noise is added, at most 1.
        steps: number of steps, from 1 to 100,000, each longer than 1e-5.
        beta_min: rate of the noise at the time 0, positive.
        beta_max: rate of the noise at the time 1, at least ``beta_min``.
        noise: gives the seed; a step takes one draw.
        fresh_noise: whether every call takes other noise, see :class:`pursamere.baselines.DiffPure`.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
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
    ) -> None:
        check_integer("steps", steps, low=1)
        super().__init__(
            denoiser,
            steps=steps,
            noise=noise,
            fresh_noise=fresh_noise,
            micro_batch=micro_batch,
            invariance=invariance,
        )
        self.time = check_positive("time", time)
        if not LAST_TIME * steps < self.time <= 1:
            raise ValueError(
                f"time must be more than {LAST_TIME:g} a step, and at most 1, got {time} for {steps} steps"
            )
        self.beta_min = check_positive("beta_min", beta_min)
        self.beta_max = check_positive("beta_max", beta_max)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_max must be at least beta_min = {beta_min}, got {beta_max}")

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes that purifying one image takes, without those for its gradient."""
        return NetworkPasses(self.steps, 0)

    def times(self) -> list[float]:
        """Return the times, steps + 1 of them, from ``time`` to 1e-5."""
        return [*(self.time * (1 - t / self.steps) for t in range(self.steps)), LAST_TIME]

    def _level(self, time: float) -> _Level:
        growth = self.beta_max - self.beta_min
        total = self.beta_min * time + growth * time**2 / 2
        variance = -math.expm1(-total)
        sigma = math.sqrt(math.expm1(total)) / 2  # of the noise beside the image, of which [-1, 1] holds two units
        return _Level(math.exp(-total / 2), variance, self.beta_min + growth * time, sigma)

    # The state is (z + 1) / 2, in pixel units.

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        level = self._level(self.time)
        return self._noisy(0.5 + level.alpha * (x0 - 0.5), math.sqrt(level.variance) / 2, mode, 0)

    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        time, until = self.times()[t : t + 2]
        level = self._level(time)
        centered = state - 0.5
        denoised = self._denoised(t, 0.5 + centered / level.alpha, differentiable=mode.create_graph and t == 0)
        score = (level.alpha * (denoised - 0.5) - centered) / level.variance
        growth = level.beta * (time - until)
        return self._noisy(state + growth * (centered / 2 + score), math.sqrt(growth) / 2, mode, t + 1)

    def _denoised(self, t: int, y: Tensor, *, differentiable: bool) -> Tensor:
        sigma = nearest_level(self._level(self.times()[t]).sigma, self.denoiser)
        return denoise(self.denoiser, y, sigma, differentiable=differentiable)

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The denoised image, rather than the step, beside whose identity it may be small.
        return (self._denoised(t, images, differentiable=mode.create_graph),)

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        return in_pixel_range(state, mode)
