"""What an attack makes as large as it can: functions of logits [B, classes] and labels [B], with a value per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each sample [B] is from being misclassified: the true class's logit minus the largest other logit.

    Unlike the cross-entropy it does not saturate for confident classifiers, so its gradient never vanishes.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return true - others


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each sample, [B], in nats."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The DLR loss of Croce and Hein (ICML 2020), [B]: minus the margin, over the gap between first and third logit.

    Neither shifting nor scaling the logits changes it.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes, got {logits.shape[1]}")
    largest = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the margin, [B]."""
    return -margin(logits, labels)


LOSSES = {"margin": negative_margin, "cross_entropy": cross_entropy, "dlr": difference_of_logits_ratio}
