"""The type that every loader returns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor

from pursamere._text import listed
from pursamere._validation import check_images, check_integer, check_names, check_tensor

_CHOICE_SEED = 20260


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """One split of a labeled data set.

    Attributes:
        name: ``"digits"``, ``"mnist"``, ``"cifar10"``, ``"cifar10_jpeg"``, or the stem of the path.
        images: float32 tensor [N, C, H, W] in [0, 1].
        labels: int64 tensor [N] in [0, len(classes)), on the device of the images.
        classes: names of the labels, all different.

    Raises:
        TypeError: an attribute has the wrong type or dtype.
        ValueError: an attribute has the wrong shape or range.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images = check_images("images", self.images)
        object.__setattr__(self, "images", images)
        labels = check_tensor("labels", self.labels, rank=1, floating=False)
        check_names("classes", self.classes)
        for name, tensor, dtype in (("images", images, torch.float32), ("labels", labels, torch.int64)):
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if len(labels) != len(images):
            raise ValueError(f"labels must have one entry per image, {len(images)}, got {len(labels)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            expected, got = len(self.classes) - 1, f"[{int(labels.min())}, {int(labels.max())}]"
            raise ValueError(f"labels must be in [0, {expected}], one for each class, got a range of {got}")

    def __repr__(self) -> str:
        shape, classes = list(self.images.shape), listed(self.classes)
        return f"Dataset({self.name!r}, images={shape}, classes=[{classes}])"

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Sequence[int] | Tensor) -> Dataset:
        """Return a copy of the images at ``rows``, integers in [0, N) in any order.

        Raises:
            ValueError: ``rows`` are not integers, or out of range.
        """
        index = torch.as_tensor(rows, device=self.labels.device)
        if index.numel() == 0:
            index = index.reshape(0).to(torch.int64)  # torch makes an empty list float32
        if index.dim() != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise ValueError(f"rows must be integers [M], got {index.dtype} {list(index.shape)}")
        index = index.to(torch.int64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            got = f"[{int(index.min())}, {int(index.max())}]"
            raise ValueError(f"rows must be in [0, {len(self) - 1}], got a range of {got}")
        return replace(self, images=self.images[index], labels=self.labels[index])

    def head(self, count: int) -> Dataset:
        """Return the first ``count`` images (1 to N) as a view.

        If the images are sorted by class, as in folders, they cover few classes; see :meth:`balanced`.
        """
        count = check_integer("count", count, low=1, high=len(self))
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def balanced_rows(self, count: int) -> list[int]:
        """Return the rows of a class-balanced sample of ``count`` images (1 to N).

        Every prefix of the sample is balanced too: class counts differ by at most one until a class runs out. The
        choice is pseudorandom and depends only on the labels.
        """
        count = check_integer("count", count, low=1, high=len(self))
        labels = self.labels.cpu().numpy()
        order = numpy.random.RandomState(_CHOICE_SEED).permutation(len(labels))  # NumPy guarantees its sequence
        by_class = labels[order].argsort(kind="stable")
        sizes = numpy.bincount(labels, minlength=1)
        round_of = numpy.empty(len(labels), numpy.int64)  # each round has one image of every class
        round_of[by_class] = numpy.arange(len(labels)) - (sizes.cumsum() - sizes).repeat(sizes)
        rows: list[int] = order[round_of.argsort(kind="stable")][:count].tolist()
        return rows

    def balanced(self, count: int) -> Dataset:
        """Return a copy of the images at :meth:`balanced_rows`."""
        return self.subset(self.balanced_rows(count))

    def relabel(self, classes: Sequence[str]) -> Dataset:
        """Return the same images with labels translated, by class name, to indices into ``classes``.

        Use ``data.relabel(classifier.class_names)`` for a classifier with more classes or another class order.

        Raises:
            TypeError: ``classes`` is not a sequence of strings.
            ValueError: ``classes`` has duplicates or lacks a class of these images.
        """
        classes = check_names("classes", classes)
        numbers = {name: number for number, name in enumerate(classes)}
        present = self.labels.unique().tolist()
        unknown = [self.classes[label] for label in present if self.classes[label] not in numbers]
        if unknown:
            raise ValueError(
                f"classes must include those of {self.name!r}: {listed(unknown)} "
                f"{'is' if len(unknown) == 1 else 'are'} not among {listed(classes)} (unnamed labels are called "
                f"'0', '1', ...)"
            )
        table = self.labels.new_tensor([numbers.get(name, -1) for name in self.classes])
        return replace(self, labels=table[self.labels], classes=classes)

    @property
    def sha256(self) -> str:
        """SHA-256 of the shapes and values of images and labels, independent of name, classes and machine.

        Recomputed on every access, at about a second per gigabyte.
        """
        digest = hashlib.sha256(f"images {list(self.images.shape)} labels {list(self.labels.shape)}\n".encode())
        for tensor, form in ((self.images, "<f4"), (self.labels, "<i8")):
            array = numpy.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=form)
            if array.size:  # a memoryview with a zero in its shape cannot be cast to bytes
                digest.update(array.data.cast("B"))
        return digest.hexdigest()
