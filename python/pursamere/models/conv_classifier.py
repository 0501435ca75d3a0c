"""The convolutional classifier that ``pursamere train classifier`` trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._validation import LARGEST_SIZE, check_choice, check_integer, check_names, check_sizes

from .whitening import Whitening

NORMALIZATIONS = ("group", "batch")
LARGEST_WHITENING = 8


class ConvClassifier(nn.Module):
    """Convolutional classifier: stages of convolution, normalization and ReLU, then global max pooling.

    Every stage after the first halves the resolution, and the first does too behind a whitening layer. With
    ``residual`` and four stages this is ResNet-9. Rows are independent, with batch normalization in evaluation mode.

    Args:
        image_shape: (C, H, W) of the images.
        classes: number of classes, in [1, 100000].
        widths: channels of each stage. Without ``residual``, a stage has two convolutions.
        residual: whether to add a residual block of two convolutions to every second stage.
        normalization: "group", or "batch", which trains faster and normalizes after pooling, where that is cheaper.
        groups: number of groups of the group normalization, a divisor of all widths. Unused by batch normalization.
        whitening: side in pixels of the patches whitened by a fixed first layer, see :meth:`whiten`; 0 for none.
        class_names: names of the logits, all different; ``None`` if unknown. Used to match the labels of data sets, see
            :meth:`pursamere.datasets.Dataset.relabel`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    architecture = "conv_classifier"

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        *,
        residual: bool = False,
        normalization: str = "group",
        groups: int = 8,
        whitening: int = 0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = check_sizes("image_shape", image_shape, length=3)
        self.classes = check_integer("classes", classes, low=1, high=100_000)
        self.widths = check_sizes("widths", widths)
        self.groups = check_integer("groups", groups, low=1, high=LARGEST_SIZE)
        if not isinstance(residual, bool):
            raise TypeError(f"residual must be a bool, got {type(residual).__name__}")
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        if normalization == "group" and any(width % self.groups for width in self.widths):
            raise ValueError(f"widths must be multiples of groups, {self.groups}, got {self.widths}")
        self.whitening = check_integer("whitening", whitening, low=0, high=LARGEST_WHITENING)
        smallest = 2 ** len(self.widths) + self.whitening - 1 if self.whitening else 2 ** (len(self.widths) - 1)
        if min(self.image_shape[1:]) < smallest:
            raise ValueError(f"widths has too many stages for images of shape {self.image_shape}, got {self.widths}")
        self.residual = residual
        self.class_names = None if class_names is None else check_names("class_names", class_names, length=self.classes)
        inputs, stages = self.image_shape[0], []
        self.stem = Whitening(inputs, self.whitening) if self.whitening else None
        if self.stem is not None:
            inputs = self.stem.outputs
        groups_or_batch = self.groups if normalization == "group" else None
        for number, width in enumerate(self.widths):
            pool = number > 0 or self.stem is not None
            stages.append(_Stage(inputs, width, groups_or_batch, pool=pool, residual=residual, block=number % 2 == 1))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, self.classes)

    def arguments(self) -> dict[str, object]:
        """The constructor's arguments as JSON-serializable values."""
        return {
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "widths": list(self.widths),
            "residual": self.residual,
            "normalization": self.normalization,
            "groups": self.groups,
            "whitening": self.whitening,
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    def whiten(self, x: Tensor) -> None:
        """Set the filters of the whitening layer, which are not trained, from images [N, C, H, W] in [0, 1].

        Raises:
            ValueError: there is no whitening layer.
        """
        if self.stem is None:
            raise ValueError("whitening must be positive for a network with a whitening layer, got 0")
        self.stem.fit(2 * x - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images [N, C, H, W] in [0, 1].

        Raises:
            ValueError: ``x`` does not have the shape [N, *image_shape].
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"x must have the shape [N, {', '.join(map(str, self.image_shape))}], got {list(x.shape)}")
        features = 2 * x - 1
        if self.stem is not None:
            features = self.stem(features).relu()
        return self.head(self.stages(features).amax(dim=(2, 3)))


class _Stage(nn.Module):
    """One or two convolutions at one resolution, with an optional residual block."""

    def __init__(self, inputs: int, width: int, groups: int | None, *, pool: bool, residual: bool, block: bool) -> None:
        super().__init__()
        self.first = _convolution(inputs, width, groups, pool=pool)
        second = [_convolution(width, width, groups)] if not residual else []
        self.second = nn.Sequential(*second)
        self.block = (
            nn.Sequential(*(_convolution(width, width, groups) for _ in range(2))) if residual and block else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return x if self.block is None else x + self.block(x)


def _convolution(inputs: int, outputs: int, groups: int | None, *, pool: bool = False) -> nn.Sequential:
    """Convolution, group normalization, ReLU and pooling; for ``groups=None``, pooling before batch normalization."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    if groups is not None:
        return nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True), *pooling)
    with torch.no_grad():  # starts as the identity on its inputs, which shortens the training (arXiv 2404.00498)
        nn.init.dirac_(convolution.weight[:inputs])
    return nn.Sequential(convolution, *pooling, _BatchNorm(outputs), nn.ReLU(inplace=True))


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalization without the count of batches, which only serves another kind of running average.

    It is an integer, and checkpoints hold floating-point tensors alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.num_batches_tracked = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        # Of a state without a version, PyTorch thinks that the count was not invented yet, and adds it.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": self._version}, *rest)
