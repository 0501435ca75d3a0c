"""Other purifiers with the same denoisers and the same gradients, for fair comparisons.

Each is a :class:`pursamere.IterativePurifier`: its randomness is a pure function of a seed, so calls repeat bit for bit
unless ``fresh_noise=True``, and exact gradients store one state per step. None is the authors' code; each docstring
names its sources.
"""

from .diffpure import DiffPure
from .ere_descent import EreDescent
from .likelihood_maximization import LikelihoodMaximization
from .published_diffpure import PublishedDiffPure
from .registry import BASELINES, with_passes
from .scoreopt_n import ScoreOptN
from .scoreopt_o import ScoreOptO

__all__ = [
    "BASELINES",
    "DiffPure",
    "EreDescent",
    "LikelihoodMaximization",
    "PublishedDiffPure",
    "ScoreOptN",
    "ScoreOptO",
    "with_passes",
]
