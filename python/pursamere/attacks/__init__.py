"""Attacks on a model from images [B, C, H, W] in [0, 1] to logits [B, classes].

Every attack returns images inside the ball of radius ``eps`` around the given ones and inside [0, 1], so what it found
is judged by running any model on them, also another than the one attacked (transfer). On a
:class:`pursamere.PurifiedClassifier` the gradient is that which the classifier was made with; believe the worst case
per sample over several.
"""

from .apgd import apgd
from .autoattack import autoattack, square
from .losses import (
    LOSSES,
    TARGETED_DLR,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from .pgd import ere_penalty, pgd
from .random_search import random_search
from .transfer import transfer

__all__ = [
    "LOSSES",
    "TARGETED_DLR",
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
