"""Losses that attacks maximize: functions of logits [B, classes] and labels [B] with a value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "FEWEST_CLASSES",
    "LOSSES",
    "TARGETED_DLR",
    "cross_entropy",
    "difference_of_logits_ratio",
    "likeliest_wrong_class",
    "loss_of_restart",
    "margin",
    "negative_margin",
    "targeted_difference_of_logits_ratio",
]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit minus the largest other logit, [B]; negative if misclassified.

    Unlike the cross-entropy it does not saturate for confident classifiers, so its gradient does not vanish.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return true - others


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each sample, [B], in nats."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The DLR loss of Croce and Hein (ICML 2020), [B]: minus the margin, over the largest minus the third logit.

    It is invariant to shifting and scaling the logits.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes, got {logits.shape[1]}")
    largest = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted DLR loss of Croce and Hein (ICML 2020), [B], for target classes ``targets`` [B].

    The target's logit minus the true class's, over the largest logit minus the mean of the third and the fourth.

    Raises:
        ValueError: there are fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least 4 classes, got {logits.shape[1]}")
    largest = logits.topk(4, dim=1).values
    true, target = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, targets))
    return (target - true) / (largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + 1e-12)


def likeliest_wrong_class(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong class [B] with the largest logit for ``rank`` 0, the next for 1, and so on, cyclically."""
    wrong = logits.scatter(1, labels[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    return wrong[:, rank % (logits.shape[1] - 1)]


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the margin, [B]."""
    return -margin(logits, labels)


LOSSES = {"margin": negative_margin, "cross_entropy": cross_entropy, "dlr": difference_of_logits_ratio}
TARGETED_DLR = "targeted_dlr"
# Number of classes that each loss needs.
FEWEST_CLASSES = {"margin": 2, "cross_entropy": 2, "dlr": 3, TARGETED_DLR: 4}


def loss_of_restart(name: str, clean_logits: Tensor, labels: Tensor, restart: int) -> Callable[..., Tensor]:
    """The loss that a restart maximizes, a function of logits and the rows (samples) that they belong to.

    For "targeted_dlr" each restart targets the next likeliest wrong class of the clean images.
    """
    if name != TARGETED_DLR:
        return lambda logits, rows: LOSSES[name](logits, labels[rows])
    targets = likeliest_wrong_class(clean_logits, labels, restart)
    return lambda logits, rows: targeted_difference_of_logits_ratio(logits, labels[rows], targets[rows])
