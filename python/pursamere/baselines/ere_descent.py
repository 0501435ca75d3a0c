"""Descent on the expected reconstruction error without the sharpness-aware ascent."""

from __future__ import annotations

from typing import Any

from pursamere.denoisers.protocol import Denoiser
from pursamere.purifier import Purifier


class EreDescent(Purifier):
    """:class:`pursamere.Purifier` with an ascent radius of 0: half the network evaluations a step, and no flatness.

    Args:
        denoiser: see :class:`pursamere.Purifier`.
        **options: those of :class:`pursamere.Purifier` other than ``ascent_radius``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    def __init__(self, denoiser: Denoiser, **options: Any) -> None:
        super().__init__(denoiser, ascent_radius=0.0, **options)
