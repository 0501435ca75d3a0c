"""What an attack makes as large as it can: functions of logits [B, classes] and labels [B], with a value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def targeted_difference_of_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted DLR loss of Croce and Hein (ICML 2020), [B]: largest where the class ``targets`` [B] wins.

    Minus the true class's logit less the target's, over the gap between the first and the mean of third and fourth.

    Raises:
        ValueError: there are fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least 4 classes, got {logits.shape[1]}")
    largest = logits.topk(4, dim=1).values
    true, target = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, targets))
    return (target - true) / (largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + 1e-12)


def likeliest_wrong_class(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The class [B] with the largest logit but the true one for ``rank`` 0, the next for 1, and so on, cyclically."""
    wrong = logits.scatter(1, labels[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    return wrong[:, rank % (logits.shape[1] - 1)]


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the margin, [B]."""
    return -margin(logits, labels)


LOSSES = {"margin": negative_margin, "cross_entropy": cross_entropy, "dlr": difference_of_logits_ratio}
TARGETED_DLR = "targeted_dlr"
# All names of losses, with the number of classes that each needs.
FEWEST_CLASSES = {"margin": 2, "cross_entropy": 2, "dlr": 3, TARGETED_DLR: 4}


def loss_of_restart(name: str, clean_logits: Tensor, labels: Tensor, restart: int) -> Callable[..., Tensor]:
    """The function of (logits, rows) that a restart ascends, ``rows`` being the samples that the logits are of.

    For "targeted_dlr" every restart aims at the next likely wrong class of the images as they are.
    """
    if name != TARGETED_DLR:
        return lambda logits, rows: LOSSES[name](logits, labels[rows])
    targets = likeliest_wrong_class(clean_logits, labels, restart)
    return lambda logits, rows: targeted_difference_of_logits_ratio(logits, labels[rows], targets[rows])
