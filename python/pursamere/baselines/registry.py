"""The baselines by name, and of equal cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pursamere._validation import check_choice, check_integer
from pursamere.denoisers.protocol import Denoiser
from pursamere.iterative import IterativePurifier

from .diffpure import DiffPure
from .ere_descent import EreDescent
from .likelihood_maximisation import LikelihoodMaximisation
from .published_diffpure import PublishedDiffPure
from .scoreopt_n import ScoreOptN
from .scoreopt_o import ScoreOptO

BASELINES: dict[str, Callable[..., IterativePurifier]] = {
    "diffpure": partial(DiffPure, fresh_noise=True),
    "diffpure_fixed_noise": DiffPure,
    "diffpure_published": partial(PublishedDiffPure, fresh_noise=True),
    "scoreopt_o": ScoreOptO,
    "scoreopt_n": ScoreOptN,
    "likelihood_maximisation": LikelihoodMaximisation,
    "ere_descent": EreDescent,
}


def with_evaluations(
    baseline: str | Callable[..., IterativePurifier], denoiser: Denoiser, evaluations: int, **options: Any
) -> IterativePurifier:
    """Return a baseline that takes at most ``evaluations`` network passes for an image, and as many as it can.

    Forward and backward passes count alike, and every draw counts; see ``IterativePurifier.evaluations``. Only the
    number of steps is chosen: options that should depend on it, like a learning rate, are the caller's.

    Args:
        baseline: a name in :data:`BASELINES`, or a constructor that takes ``steps``, like :class:`pursamere.Purifier`.
        denoiser: for the baseline.
        evaluations: at least what one step takes.
        **options: for the baseline, without ``steps``.

    Raises:
        TypeError: an argument of the wrong type, or ``steps`` among the options.
        ValueError: ``evaluations`` is less than one step takes, or an argument is out of its range.
    """
    check_integer("evaluations", evaluations, low=1)
    if "steps" in options:
        raise TypeError("steps follows from evaluations, so it must not be given")
    make = BASELINES[check_choice("baseline", baseline, BASELINES)] if isinstance(baseline, str) else baseline
    one, two = (make(denoiser, steps=steps, **options).evaluations.total for steps in (1, 2))
    if evaluations < one:
        raise ValueError(f"evaluations must be at least {one}, what one step takes, got {evaluations}")
    return make(denoiser, steps=1 + (evaluations - one) // (two - one), **options)
