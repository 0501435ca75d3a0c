"""Noise levels within the range of a denoiser."""

from __future__ import annotations

from pursamere._validation import check_positive
from pursamere.denoisers.protocol import Denoiser, sigma_range_of

__all__ = ["nearest_level", "noise_level"]


def noise_level(name: str, value: float | None, denoiser: Denoiser, *, default: float) -> float:
    """Return the given noise level, checked, or the default, clipped to the denoiser's ``sigma_range``.

    Args:
        name: the argument's name in messages.
        value: the given level, ``None`` for the default; whether it is in range is left to the denoiser.
        denoiser: the denoiser.
        default: in pixel units.
    """
    return nearest_level(default, denoiser) if value is None else check_positive(name, value)


def nearest_level(sigma: float, denoiser: Denoiser) -> float:
    """Return ``sigma`` clipped to the denoiser's ``sigma_range``."""
    low, high = sigma_range_of(denoiser)
    return min(max(sigma, low), high)
