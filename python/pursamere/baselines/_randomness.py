"""Randomness of the baselines: pure functions of a seed and a purpose."""

from __future__ import annotations

import numpy as np

from pursamere.noise import MAX_SEED, GaussianNoise

__all__ = ["derived", "of_image", "single_draw", "uniform"]


def single_draw(noise: GaussianNoise | None) -> GaussianNoise:
    """Return noise of one draw, with the seed of ``noise`` or 0: each step of a baseline takes one draw."""
    if noise is not None and not isinstance(noise, GaussianNoise):
        raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")
    return GaussianNoise(seed=0 if noise is None else noise.seed, draws=1, antithetic=False)


def derived(noise: GaussianNoise, *purpose: int) -> GaussianNoise:
    """Return noise of one draw, independent for every purpose."""
    return GaussianNoise(seed=_word(noise, purpose) & MAX_SEED, draws=1, antithetic=False)


def of_image(noise: GaussianNoise, image_id: int) -> GaussianNoise:
    """Return the noise of one image, independent of that of images with other ids."""
    return derived(noise, 0, image_id)  # two words, while a call of a random purifier has one


def uniform(noise: GaussianNoise, *purpose: int, low: float, high: float) -> float:
    """Return a uniformly distributed number in [low, high], independent for every purpose."""
    return low + (high - low) * _word(noise, purpose) / 2**64


def _word(noise: GaussianNoise, purpose: tuple[int, ...]) -> int:
    # NumPy guarantees that these words never change. With seed plus counter, neighboring seeds would share noise.
    return int(np.random.SeedSequence(noise.seed, spawn_key=purpose).generate_state(1, np.uint64)[0])
