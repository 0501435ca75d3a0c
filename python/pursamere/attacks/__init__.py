"""Attacks on a model from images [B, C, H, W] in [0, 1] to logits [B, classes].

Every attack is a function and, as a line of an evaluation's protocol, a class: :func:`pgd` and :class:`PGD`. It returns
images within ``eps`` of the given ones and within [0, 1], so any model can judge them, not only the one attacked
(transfer). A :class:`pursamere.PurifiedClassifier` is differentiated by the ``gradient`` that it was made with. Rely on
the worst case per sample over several attacks, not on a single one.
"""

from .apgd import APGD, apgd
from .attack import Attack, GradientAttack, Hooks
from .autoattack import AutoAttack, autoattack
from .clean import Clean
from .losses import (
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from .pgd import PGD, ere_penalty, pgd
from .random_search import RandomSearch, random_search
from .square import Square, square
from .transfer import Transfer, transfer

__all__ = [
    "APGD",
    "PGD",
    "Attack",
    "AutoAttack",
    "Clean",
    "GradientAttack",
    "Hooks",
    "RandomSearch",
    "Square",
    "Transfer",
    "apgd",
    "autoattack",
    "cross_entropy",
    "difference_of_logits_ratio",
    "ere_penalty",
    "margin",
    "pgd",
    "random_search",
    "square",
    "targeted_difference_of_logits_ratio",
    "transfer",
]
