"""The convolutional classifier that ``pursamere train classifier`` trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pursamere._validation import LARGEST_SIZE, check_integer, check_names, check_sizes


class ConvClassifier(nn.Module):
    """Convolutional classifier: stages of convolution, group normalization and ReLU, then global max pooling.

    Every stage after the first halves the resolution. With ``residual`` and four stages this is ResNet-9. Rows are
    independent.

    Args:
        image_shape: (C, H, W) of the images.
        classes: number of classes, in [1, 100000].
        widths: channels of each stage, multiples of ``groups``. Without ``residual``, a stage has two convolutions.
        residual: whether to add a residual block of two convolutions to every second stage.
        groups: number of groups of the group normalization.
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
        groups: int = 8,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = check_sizes("image_shape", image_shape, length=3)
        self.classes = check_integer("classes", classes, low=1, high=100_000)
        self.widths = check_sizes("widths", widths)
        self.groups = check_integer("groups", groups, low=1, high=LARGEST_SIZE)
        if not isinstance(residual, bool):
            raise TypeError(f"residual must be a bool, got {type(residual).__name__}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths must be multiples of groups, {self.groups}, got {self.widths}")
        if min(self.image_shape[1:]) < 2 ** (len(self.widths) - 1):
            raise ValueError(f"widths has too many stages for images of shape {self.image_shape}, got {self.widths}")
        self.residual = residual
        self.class_names = None if class_names is None else check_names("class_names", class_names, length=self.classes)
        inputs, stages = self.image_shape[0], []
        for number, width in enumerate(self.widths):
            stages.append(_Stage(inputs, width, self.groups, pool=number > 0, residual=residual, block=number % 2 == 1))
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
            "groups": self.groups,
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images [N, C, H, W] in [0, 1].

        Raises:
            ValueError: ``x`` does not have the shape [N, *image_shape].
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"x must have the shape [N, {', '.join(map(str, self.image_shape))}], got {list(x.shape)}")
        features = self.stages(2 * x - 1).amax(dim=(2, 3))
        return self.head(features)


class _Stage(nn.Module):
    """One or two convolutions at one resolution, with an optional residual block."""

    def __init__(self, inputs: int, width: int, groups: int, *, pool: bool, residual: bool, block: bool) -> None:
        super().__init__()
        self.first = _convolution(inputs, width, groups)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        second = [_convolution(width, width, groups)] if not residual else []
        self.second = nn.Sequential(*second)
        self.block = (
            nn.Sequential(*(_convolution(width, width, groups) for _ in range(2))) if residual and block else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.pool(self.first(x)))
        return x if self.block is None else x + self.block(x)


def _convolution(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True)
    )
