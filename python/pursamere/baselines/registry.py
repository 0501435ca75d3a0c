"""The baselines by name, and baselines of a given cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pursamere._validation import check_choice, check_integer
from pursamere.denoisers.protocol import Denoiser
from pursamere.stepping import IterativePurifier

from .diffpure import DiffPure
from .ere_descent import EreDescent
from .likelihood_maximization import LikelihoodMaximization
from .published_diffpure import PublishedDiffPure
from .scoreopt_n import ScoreOptN
from .scoreopt_o import ScoreOptO

__all__ = ["BASELINES", "with_passes"]

BASELINES: dict[str, Callable[..., IterativePurifier]] = {
    "diffpure": partial(DiffPure, fresh_noise=True),
    "diffpure_fixed_noise": DiffPure,
    "diffpure_published": partial(PublishedDiffPure, fresh_noise=True),
    "scoreopt_o": ScoreOptO,
    "scoreopt_n": ScoreOptN,
    "likelihood_maximization": LikelihoodMaximization,
    "ere_descent": EreDescent,
}
"""What makes a baseline from a denoiser and options, by the name on the command line."""


def with_passes(
    baseline: str | Callable[..., IterativePurifier], denoiser: Denoiser, passes: int, **options: Any
) -> IterativePurifier:
    """Return a baseline with as many steps as at most ``passes`` network passes per image allow.

    Forward and backward passes count alike, and every draw counts, see ``IterativePurifier.network_passes``. Only the
    number of steps is chosen; options that should depend on it, like a learning rate, are up to the caller.

    Args:
        baseline: a name in :data:`BASELINES`, or a constructor that takes ``steps``, like :class:`pursamere.Purifier`.
        denoiser: the denoiser.
        passes: network passes per image, at least those of one step.
        **options: other options of the baseline.

    Raises:
        TypeError: an argument has the wrong type, or ``steps`` is given.
        ValueError: ``passes`` is too small for one step, or an argument is out of range.
    """
    check_integer("passes", passes, low=1)
    if "steps" in options:
        raise TypeError("steps follows from passes, so it must not be given")
    make = BASELINES[check_choice("baseline", baseline, BASELINES)] if isinstance(baseline, str) else baseline
    one, two = (make(denoiser, steps=steps, **options).network_passes.total for steps in (1, 2))
    if passes < one:
        raise ValueError(f"passes must be at least {one}, what one step takes, got {passes}")
    return make(denoiser, steps=1 + (passes - one) // (two - one), **options)
