"""Attacks on a model from images [B, C, H, W] in [0, 1] to logits [B, classes].

Every attack returns images inside the ball of radius ``eps`` around the given ones and inside [0, 1], so what it found
is judged by running any model on them, also another than the one attacked (transfer). On a
:class:`pursamere.PurifiedClassifier` the gradient is that which the classifier was made with; believe the worst case
per sample over several.
"""

from .losses import LOSSES, cross_entropy, difference_of_logits_ratio, margin
from .pgd import ere_penalty, pgd
from .random_search import random_search

__all__ = [
    "LOSSES",
    "cross_entropy",
    "difference_of_logits_ratio",
    "ere_penalty",
    "margin",
    "pgd",
    "random_search",
]
