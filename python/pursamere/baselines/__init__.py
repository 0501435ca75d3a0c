"""Other purifiers, over the same denoisers and with the same gradient options, to compare with on equal terms.

Each is a :class:`pursamere.IterativePurifier`: what is random in it is a pure function of a seed, so calls repeat bit
for bit, and gradients are exact at a memory of one state a step. None of them is the authors' program: each docstring
says what we took from where.
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
