"""DiffPure: add noise, then run the reverse diffusion (Nie et al., ICML 2022)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pursamere._validation import check_choice, check_nonnegative, check_positive
from pursamere.denoisers.protocol import Denoiser, sigma_range_of
from pursamere.descent import in_pixel_range
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise
from pursamere.stepping import NetworkPasses, StepMode

from ._diffusion import DiffusionPurifier
from ._levels import noise_level

__all__ = ["DiffPure"]

_SOLVERS = ("corrected", "euler", "heun")


class _Step(NamedTuple):
    """A step of the ODE from ``sigma`` to ``down``, then noise of standard deviation ``up``."""

    sigma: float
    down: float
    up: float

    @property
    def correction(self) -> float:
        """The weight w of the correction, see :class:`DiffPure`."""
        # Exact if D(y) is close to y, that is for a prior much wider than sigma; in short steps about half of
        # 1 - down / sigma, the weight of the trapezoidal rule.
        return math.sqrt(self.sigma / self.down) - 1


class DiffPure(DiffusionPurifier):
    """Adds noise to the image and removes it by the reverse of the variance-exploding diffusion.

    The reverse process starts from x + sigma_max xi and decreases sigma. In the family (Karras et al., NeurIPS 2022,
    eq. 6)::

        dx = -(1 + lambda) sigma s(x, sigma) dsigma + sqrt(2 lambda sigma |dsigma|) xi,

    where s(x, sigma) = (D(x, sigma) - x) / sigma^2 and lambda is the ``stochasticity``, lambda = 1 is the reverse SDE
    (Song et al., ICLR 2021) and lambda = 0 the probability flow ODE. A step from sigma to sigma' follows the ODE down
    to sigma'' and adds noise up to sigma':

        up^2 = sigma'^2 (1 - (sigma' / sigma)^(2 lambda)),   sigma''^2 = sigma'^2 - up^2,
        x' = x + (sigma'' - sigma) d + up xi,   d = (x - D(x, sigma)) / sigma,

    which is exact for a constant D(x, sigma). This is the solver "euler"; for lambda = 1 it is the ancestral sampler of
    DDPM. It ignores that the noise of a step changes D, so its results spread less than those of the process.

    - "corrected" adds to Euler's x' the term w (D(x', sigma') - D(x, sigma)), with w = sqrt(sigma / sigma'') - 1.
      The next step needs D(x', sigma') anyway, so a step still takes one network pass. It is of second order. Its exact
      gradient stores two images a step instead of one.
    - "heun" averages d with its value at sigma'', at the end point of Euler's step, before the same noise is added. The
      distribution is as exact as the solution of the ODE, here to second order; how much of the image is kept is of
      first order. The last step, to sigma'' = 0, is Euler's. If sigma'' would be below the denoiser's ``sigma_range``,
      less noise is renewed.

    Noise levels are those of Karras et al.: equidistant in sigma^(1 / rho) from ``sigma_max`` to ``sigma_min``, then 0.
    The result is clipped to [0, 1]. ``docs/evaluation.md`` has the errors of the solvers on a Gaussian prior; with the
    defaults they are within 3 % if its standard deviation is at least 10 ``sigma_min``.

    The published defense draws new noise for every image and every call. Here all images of a call share their noise,
    unless :meth:`forward` is given ``image_ids``, and all calls share it, unless ``fresh_noise`` is set: then every
    call takes the next of a sequence of noises, which :meth:`reset` restarts. A gradient is for the noise of its call.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma_max: standard deviation of the added noise, in pixel units. Default: 0.17, which corresponds to the time
            0.1 of the published defense on CIFAR-10, clipped to the denoiser's ``sigma_range``.
        sigma_min: the last noise level above 0, at most ``sigma_max``. Default: 0.001, that of Karras et al. in pixel
            units, clipped likewise.
        rho: positive; a larger value puts more of the steps at low noise.
        steps: number of steps, from 1 to 100,000.
        solver: "corrected" or "euler", with one network pass a step, or "heun", with two except in the last step.
        stochasticity: lambda, in [0, 1].
        noise: gives the seed; a step takes one draw.
        fresh_noise: whether every call uses new noise.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
        execution: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("sigma_max", "sigma_min", "rho", "steps", "solver", "stochasticity", "random")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        rho: float = 7.0,
        steps: int = 20,
        solver: str = "corrected",
        stochasticity: float = 1.0,
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
        self.sigma_max = noise_level("sigma_max", sigma_max, denoiser, default=0.17)
        self.sigma_min = noise_level("sigma_min", sigma_min, denoiser, default=0.001)
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min must be at most sigma_max = {self.sigma_max}, got {self.sigma_min}")
        self.rho = check_positive("rho", rho)
        self.solver = check_choice("solver", solver, _SOLVERS)
        self.stochasticity = check_nonnegative("stochasticity", stochasticity)
        if self.stochasticity > 1:
            raise ValueError(f"stochasticity must be in [0, 1], got {stochasticity}")

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        return NetworkPasses(2 * self.steps - 1 if self.solver == "heun" else self.steps, 0)

    def sigmas(self) -> list[float]:
        """Return the steps + 1 noise levels, of which the last is 0."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        fractions = [t / max(1, self.steps - 1) for t in range(self.steps)]
        levels = [(high + f * (low - high)) ** self.rho for f in fractions[1:]]
        # Rounding must not leave the denoiser's range, nor increase a level.
        return [self.sigma_max, *(min(max(level, self._lowest), self.sigma_max) for level in levels), 0.0]

    @property
    def _lowest(self) -> float:
        """The lowest level at which the denoiser is used."""
        return min(sigma_range_of(self.denoiser)[0], self.sigma_min)

    def _plan(self, t: int) -> _Step:
        sigma, target = self.sigmas()[t : t + 2]
        renewed = 1 - (target / sigma) ** (2 * self.stochasticity)  # fraction of the target's variance
        kept = math.sqrt(1 - renewed) or (target / sigma) ** self.stochasticity  # if the difference rounds to 0
        up, down = target * math.sqrt(renewed), target * kept
        if self.solver == "heun" and 0 < down < self._lowest:
            up, down = math.sqrt(target**2 - self._lowest**2), self._lowest
        return _Step(sigma, down, up)

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        noisy = self._noisy(x0, self.sigma_max, mode, 0)
        # With the image, the denoised image of the previous step; the first step has none.
        return torch.stack((noisy, torch.zeros_like(noisy)), dim=1) if self.solver == "corrected" else noisy

    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        sigma, down, up = self._plan(t)
        x, before = state.unbind(1) if self.solver == "corrected" else (state, None)
        denoised = self._denoised(x, sigma, t, mode)
        if before is not None and t > 0:  # the previous step ended here, at its Euler point
            x = x + self._plan(t - 1).correction * (denoised - before)
        slope = (x - denoised) / sigma
        moved = x + (down - sigma) * slope
        if self.solver == "heun" and down > 0:
            moved = x + (down - sigma) / 2 * (slope + (moved - self._denoised(moved, down, t, mode)) / down)
        if up > 0:
            moved = self._noisy(moved, up, mode, t + 1)
        return moved if before is None else torch.stack((moved, denoised), dim=1)

    def _denoised(self, x: Tensor, sigma: float, t: int, mode: StepMode) -> Tensor:
        # Checking once that the denoiser has a derivative is enough.
        return denoise(self.denoiser, x, sigma, mode.run, differentiable=mode.create_graph and t == 0)

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The denoised image instead of the step, whose identity part would hide errors.
        return (denoise(self.denoiser, images, self.sigmas()[t], mode.run, differentiable=mode.create_graph),)

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        return in_pixel_range(state[:, 0] if self.solver == "corrected" else state, mode.projected)
