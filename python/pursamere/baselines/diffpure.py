"""DiffPure: noise, then the reverse diffusion (Nie et al., ICML 2022)."""

from __future__ import annotations

import math

from torch import Tensor

from pursamere import functional
from pursamere._validation import check_choice, check_integer, check_nonnegative, check_positive
from pursamere.denoisers.protocol import Denoiser, sigma_range_of
from pursamere.iterative import Evaluations, IterativePurifier, Run, in_pixel_range
from pursamere.noise import GaussianNoise
from pursamere.objective import denoise

from ._levels import noise_level
from ._randomness import derived, single_draw

SOLVERS = ("euler", "heun")


class DiffPure(IterativePurifier):
    """Adds noise to the image and takes it off again by the reverse of the variance-exploding diffusion.

    From x + sigma_max xi the reverse process goes down in sigma. Of the family (Karras et al., NeurIPS 2022, eq. 6)

        dx = -(1 + lambda) sigma s(x, sigma) dsigma + sqrt(2 lambda sigma |dsigma|) xi,

    where s(x, sigma) = (D(x, sigma) - x) / sigma^2 and lambda is the ``stochasticity``, lambda = 1 is the reverse SDE
    (Song et al., ICLR 2021) and lambda = 0 the probability flow ODE. A step from sigma to sigma' goes by the ODE to a
    sigma'' below, and adds noise up to sigma':

        up^2 = lambda sigma'^2 (1 - sigma'^2 / sigma^2),   sigma''^2 = sigma'^2 - up^2,
        x' = x + (sigma'' - sigma) d + up xi,   d = (x - D(x, sigma)) / sigma.

    That is the Euler step of the drift above (for lambda = 1, in the variable sigma^2) with noise that keeps the
    distribution exact whenever the ODE is solved exactly. "heun" averages d with its value at the point that Euler's
    step leads to, at sigma'', before the same noise is added, which is of second order in the ODE; the last step, to
    sigma'' = 0, is Euler's. There sigma'' may be below ``sigma_min``; where it would be below the denoiser's
    ``sigma_range``, less noise is renewed. The noise levels sigma are those of Karras et al.: equidistant in
    sigma^(1 / rho) from ``sigma_max`` to ``sigma_min``, then 0. The result is clipped to [0, 1].

    The published defence draws its noise anew for every image and every call. Here all images of a call share it, and
    all calls too unless ``fresh_noise`` is set: then every call takes the next of a sequence of noises, which
    :meth:`reset` starts again. A gradient is that for the noise of its call.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        sigma_max: standard deviation of the added noise, in pixel units. By default 0.17, what the time 0.1 of the
            published defence on CIFAR-10 amounts to, clipped to the denoiser's ``sigma_range``.
        sigma_min: the last one above 0, at most ``sigma_max``; by default 0.001, that of Karras et al. in pixel units,
            clipped likewise.
        rho: larger for more of the steps at low noise, positive.
        steps: number of steps, at least 1.
        solver: "euler", one network evaluation a step, or "heun", two but for the last step.
        stochasticity: lambda, in [0, 1].
        noise: gives the seed; a step takes one draw.
        fresh_noise: whether every call takes other noise.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    _parameters_shown = ("sigma_max", "sigma_min", "rho", "steps", "solver", "stochasticity", "random")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        rho: float = 7.0,
        steps: int = 10,
        solver: str = "euler",
        stochasticity: float = 1.0,
        noise: GaussianNoise | None = None,
        fresh_noise: bool = False,
        micro_batch: int | None = None,
        invariance: str = "warn",
    ) -> None:
        check_integer("steps", steps, low=1)
        super().__init__(
            denoiser, steps=steps, noise=single_draw(noise), micro_batch=micro_batch, invariance=invariance
        )
        self.sigma_max = noise_level("sigma_max", sigma_max, denoiser, default=0.17)
        self.sigma_min = noise_level("sigma_min", sigma_min, denoiser, default=0.001)
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min must be at most sigma_max = {self.sigma_max}, got {self.sigma_min}")
        self.rho = check_positive("rho", rho)
        self.solver = check_choice("solver", solver, SOLVERS)
        self.stochasticity = check_nonnegative("stochasticity", stochasticity)
        if self.stochasticity > 1:
            raise ValueError(f"stochasticity must be in [0, 1], got {stochasticity}")
        if not isinstance(fresh_noise, bool):
            raise TypeError(f"fresh_noise must be a bool, got {type(fresh_noise).__name__}")
        self.random = fresh_noise
        self._calls = 0

    def reset(self, seed: int | None = None) -> None:
        """Start the sequence of noises again, with another seed if one is given."""
        if seed is not None:
            self.noise = single_draw(GaussianNoise(seed=seed))
        self._calls = 0

    @property
    def evaluations(self) -> Evaluations:
        """The network passes that purifying one image takes, without those for its gradient."""
        return Evaluations(self.steps if self.solver == "euler" else 2 * self.steps - 1, 0)

    def sigmas(self) -> list[float]:
        """Return the noise levels, steps + 1 of them, the last 0."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        fractions = [t / max(1, self.steps - 1) for t in range(self.steps)]
        levels = [(high + f * (low - high)) ** self.rho for f in fractions[1:]]
        # Rounding must not lead out of the denoiser's range, nor up.
        return [self.sigma_max, *(min(max(level, self._lowest), self.sigma_max) for level in levels), 0.0]

    @property
    def _lowest(self) -> float:
        """The level below which the denoiser is not asked, unless ``sigma_min`` is lower."""
        return min(sigma_range_of(self.denoiser)[0], self.sigma_min)

    def _noise_of_call(self) -> GaussianNoise:
        if not self.random:
            return self.noise
        self._calls += 1
        return derived(self.noise, self._calls)

    def _initial(self, x0: Tensor, run: Run) -> Tensor:
        return functional.perturb(x0, self.sigma_max, derived(run.noise, 0))[0]

    def _step(self, t: int, state: Tensor, x0: Tensor, run: Run) -> Tensor:
        sigma, target = self.sigmas()[t : t + 2]
        renewed = self.stochasticity * (1 - (target / sigma) ** 2)  # part of the target's variance
        up, down = target * math.sqrt(renewed), target * math.sqrt(1 - renewed)
        if self.solver == "heun" and 0 < down < self._lowest:
            up, down = math.sqrt(target**2 - self._lowest**2), self._lowest
        slope = self._slope(state, sigma, t, run)
        x = state + (down - sigma) * slope
        if self.solver == "heun" and down > 0:
            x = state + (down - sigma) / 2 * (slope + self._slope(x, down, t, run))
        return functional.perturb(x, up, derived(run.noise, t + 1))[0] if up > 0 else x

    def _slope(self, x: Tensor, sigma: float, t: int, run: Run) -> Tensor:
        # One look at whether the denoiser has a derivative is enough: without one the gradient would be wrong.
        return (x - denoise(self.denoiser, x, sigma, differentiable=run.create_graph and t == 0)) / sigma

    def _probe(self, t: int, images: Tensor, run: Run) -> tuple[Tensor, ...]:
        # The denoised image, rather than the step, beside whose identity it may be small.
        return (denoise(self.denoiser, images, self.sigmas()[t], differentiable=run.create_graph),)

    def _result(self, state: Tensor, x0: Tensor, run: Run) -> Tensor:
        return in_pixel_range(state, run)
