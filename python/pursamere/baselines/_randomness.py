"""What is random in a baseline: pure functions of a seed and of what it is for."""

from __future__ import annotations

import numpy as np

from pursamere.noise import MAX_SEED, GaussianNoise


def single_draw(noise: GaussianNoise | None) -> GaussianNoise:
    """Return noise of one draw with the seed of ``noise``, or seed 0: a baseline's step takes one draw."""
    if noise is not None and not isinstance(noise, GaussianNoise):
        raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")
    return GaussianNoise(seed=0 if noise is None else noise.seed, draws=1, antithetic=False)


def derived(noise: GaussianNoise, *purpose: int) -> GaussianNoise:
    """Return the noise of one draw that belongs to a purpose, independent of that of every other."""
    return GaussianNoise(seed=_word(noise, purpose) & MAX_SEED, draws=1, antithetic=False)


def of_image(noise: GaussianNoise, image_id: int) -> GaussianNoise:
    """Return the noise that ``noise`` is for one of several images whose noises are independent."""
    return derived(noise, 0, image_id)  # two words, while a call of a random purifier has one


def uniform(noise: GaussianNoise, *purpose: int, low: float, high: float) -> float:
    """Return a number in [low, high] that belongs to a purpose, uniformly distributed."""
    return low + (high - low) * _word(noise, purpose) / 2**64


def _word(noise: GaussianNoise, purpose: tuple[int, ...]) -> int:
    # NumPy promises that these words never change; a seed plus a counter would give neighboring seeds the same noise.
    return int(np.random.SeedSequence(noise.seed, spawn_key=purpose).generate_state(1, np.uint64)[0])
