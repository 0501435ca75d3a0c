"""What the purifiers that noise an image and denoise it again have in common: where their noise comes from."""

from __future__ import annotations

from torch import Tensor

from pursamere import functional
from pursamere.denoisers.protocol import Denoiser
from pursamere.iterative import IterativePurifier, Run
from pursamere.noise import GaussianNoise

from ._randomness import derived, single_draw


class DiffusionPurifier(IterativePurifier):
    """Steps that take noise, the same in every call or, with ``fresh_noise``, the next of a sequence in every call.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        steps: number of steps.
        noise: gives the seed; every step takes one draw.
        fresh_noise: whether every call takes other noise.
        micro_batch: see :class:`pursamere.IterativePurifier`.
        invariance: see :class:`pursamere.IterativePurifier`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        steps: int,
        noise: GaussianNoise | None,
        fresh_noise: bool,
        micro_batch: int | None,
        invariance: str,
    ) -> None:
        super().__init__(
            denoiser, steps=steps, noise=single_draw(noise), micro_batch=micro_batch, invariance=invariance
        )
        if not isinstance(fresh_noise, bool):
            raise TypeError(f"fresh_noise must be a bool, got {type(fresh_noise).__name__}")
        self.random = fresh_noise
        self._calls = 0

    def reset(self, seed: int | None = None) -> None:
        """Start the sequence of noises again, with another seed if one is given."""
        if seed is not None:
            self.noise = single_draw(GaussianNoise(seed=seed))
        self._calls = 0

    def _noise_of_call(self) -> GaussianNoise:
        if not self.random:
            return self.noise
        self._calls += 1
        return derived(self.noise, self._calls)

    def _noisy(self, x: Tensor, sigma: float, run: Run, number: int) -> Tensor:
        """Return ``x`` with the noise of that number, 0 before the first step and t + 1 in step t."""
        return functional.perturb(x, sigma, derived(run.noise, number))[0]
