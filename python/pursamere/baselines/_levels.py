"""The noise levels of a baseline."""

from __future__ import annotations

from pursamere._validation import check_positive
from pursamere.denoisers.protocol import Denoiser, sigma_range_of


def noise_level(name: str, value: float | None, denoiser: Denoiser, *, default: float) -> float:
    """Return a noise level that was given, checked, or the default, clipped to the levels that the denoiser knows.

    Args:
        name: of the argument, for messages.
        value: what was given, ``None`` for the default.
        denoiser: whose range counts; a level that was given is the denoiser's to accept or refuse.
        default: in pixel units.
    """
    return nearest_level(default, denoiser) if value is None else check_positive(name, value)


def nearest_level(sigma: float, denoiser: Denoiser) -> float:
    """Return the level in the denoiser's range that is nearest to ``sigma``."""
    low, high = sigma_range_of(denoiser)
    return min(max(sigma, low), high)
