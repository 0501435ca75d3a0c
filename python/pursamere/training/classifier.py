"""Training a classifier on images that are moved a little and perhaps mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pursamere.datasets import Dataset
from pursamere.models.conv_classifier import ConvClassifier

from .configuration import ClassifierConfiguration
from .initial import seeded

_BATCH = 256


def build_classifier(
    settings: ClassifierConfiguration, image_shape: tuple[int, ...], class_names: Sequence[str]
) -> ConvClassifier:
    """The untrained network, its weights drawn from the seed."""
    with seeded(settings.seed):
        return ConvClassifier(
            image_shape,
            len(class_names),
            settings.widths,
            residual=settings.residual,
            groups=settings.groups,
            class_names=class_names,
        )


class ClassifierTask:
    """Cross-entropy."""

    def __init__(
        self, settings: ClassifierConfiguration, train: Dataset, validation: Dataset, device: torch.device
    ) -> None:
        self.settings = settings
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.validation = (validation.images.to(device), validation.labels.to(device))
        self.size = len(self.images)

    def losses(self, network: Any, rows: Tensor, mine: slice, generator: torch.Generator) -> Tensor:
        """Cross-entropy per image."""
        rows = rows.to(self.images.device)
        x = augment(self.images[rows], self.settings.shift, self.settings.flip, generator)
        return functional.cross_entropy(
            network(x[mine]).float(),
            self.labels[rows][mine],
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Accuracy and cross-entropy on the validation images."""
        correct, loss = 0.0, 0.0
        for x, labels in zip(*(part.split(_BATCH) for part in self.validation), strict=True):
            logits = network(x)
            correct += float((logits.argmax(dim=1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        count = len(self.validation[0])
        return {"cross-entropy": loss / count, "accuracy": correct / count}

    def table(self, network: nn.Module) -> list[dict[str, float]]:
        """The figures of the final network."""
        return [self.validate(network)]


def augment(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move every image [N, C, H, W] by up to ``shift`` pixels, filling with zeros, and mirror half of them."""
    count, channels, height, width = x.shape
    moves = torch.randint(0, 2 * shift + 1, (2, count), generator=generator, device=x.device)
    rows, columns = (
        move.view(-1, 1) + torch.arange(size, device=x.device)
        for move, size in zip(moves, (height, width), strict=True)
    )
    if flip:
        mirrored = torch.rand((count, 1), generator=generator, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return functional.pad(x, (shift,) * 4)[images, planes, rows[:, None, :, None], columns[:, None, None, :]]
