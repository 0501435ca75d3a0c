"""Defenses by name, from values as a command line has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pursamere._validation import check_choice
from pursamere.baselines import BASELINES, with_passes
from pursamere.denoisers import Denoiser
from pursamere.execution import Execution
from pursamere.noise import GaussianNoise
from pursamere.purifier import Purifier
from pursamere.stepping import IterativePurifier

__all__ = ["DEFENSES", "build_defense"]

DEFENSES: dict[str, Callable[..., IterativePurifier]] = {"pursamere": Purifier, **BASELINES}
_NOISE = {"noise_seed": "seed", "draws": "draws", "antithetic": "antithetic"}
_EXECUTION = tuple(inspect.signature(Execution).parameters)


def build_defense(
    name: str, denoiser: Denoiser, options: Mapping[str, Any], passes: int | None = None
) -> IterativePurifier:
    """Return the purifier of that name.

    Args:
        name: "pursamere" or one of :data:`pursamere.baselines.BASELINES`.
        denoiser: its denoiser.
        options: keyword arguments of its class, except that ``noise_seed``, ``draws`` and ``antithetic`` describe the
            noise, and those of :class:`pursamere.Execution` how its network runs.
        passes: choose ``steps`` so that an image takes at most this many network passes.

    Raises:
        TypeError: an option's value has the wrong type.
        ValueError: the name or an option is unknown, or a value is out of its range.
    """
    make = DEFENSES[check_choice("defense", name, DEFENSES)]
    known = [
        option for option in inspect.signature(make).parameters if option not in ("denoiser", "noise", "execution")
    ]
    for option in options:
        check_choice(f"an option of {name}", option, (*known, *_NOISE, *_EXECUTION))
    noise = {_NOISE[option]: value for option, value in options.items() if option in _NOISE}
    execution = {option: value for option, value in options.items() if option in _EXECUTION}
    chosen = {option: value for option, value in options.items() if option in known}
    if noise:
        chosen["noise"] = GaussianNoise(**noise)
    if execution:
        chosen["execution"] = Execution(**execution)
    if passes is None:
        return make(denoiser, **chosen)
    return with_passes(partial(make), denoiser, passes, **chosen)
