"""What is evaluated, and whether it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pursamere._environment import package_version, versions
from pursamere._hashes import sha256
from pursamere._threads import cpu_threads
from pursamere.attacks._balls import check_labels
from pursamere.derivative_check import Agreement

from .classes import find_class_names
from .determinism import CHECKED, check_deterministic
from .protocol import Protocol
from .target import Target

__all__ = ["Case"]

_FORMAT = 3  # of a run's folder; another one is refused


@dataclass(frozen=True)
class Case:
    """A model, images, and how to attack them.

    Attributes:
        target: the model.
        images: [B, C, H, W] in [0, 1].
        labels: [B], int64.
        eps: radii of the attacks, in pixel units.
        norm: "linf" or "l2".
        protocol: the attacks.
        seed: seed of the attacks.
        chunk: number of samples that are attacked together.
        micro_batch: batch size of a model that is not a ``PurifiedClassifier``.
        data: description of the images.
        class_names: names that the caller gives to the classes.
    """

    target: Target
    images: Tensor
    labels: Tensor
    eps: tuple[float, ...]
    norm: str
    protocol: Protocol
    seed: int
    chunk: int
    micro_batch: int
    data: str
    class_names: Sequence[str] | None

    def check_model(self) -> Agreement | None:
        """Require a deterministic model that can be attacked; return how its derivative was verified, if it was.

        The model runs here for the first time. Raises what :func:`pursamere.evaluate` documents.
        """
        target, images = self.target, self.images
        check_labels(self.labels, target.count_classes(images))
        self._names()
        if not target.is_random:
            check_deterministic(target.logits, images)
        gradients = {"exact", *(attack.gradient for attack in self.protocol.attacks if attack.gradient is not None)}
        target.check_attackable(images[:CHECKED], sorted(gradients), self.seed)
        return target.check_derivative(self.protocol.attacks, images)

    def _names(self) -> tuple[str, ...] | None:
        return find_class_names(self.target.original, self.class_names, self.target.classes)

    def config(self) -> dict[str, Any]:
        """Everything that defines a run, as values for JSON. The model has been checked."""
        target, images, labels = self.target, self.images, self.labels
        with cpu_threads(1):  # the last bits may depend on the number of threads
            behavior = target.behavior_sha256(images[:CHECKED], self.seed)
        return {
            "format": _FORMAT,
            "data": {
                "name": self.data,
                "sha256": sha256(images, labels),
                "samples": len(images),
                "classes": self._names(),
                "per_class": labels.bincount(minlength=target.classes).tolist(),
            },
            "model": {
                "description": target.description,
                "random": target.is_random,
                "names_classes": getattr(target.original, "class_names", None) is not None,
                "sha256": target.sha256(),
                "logits_sha256": behavior,
                "micro_batches": target.micro_batches(self.protocol.attacks, images[:1]),
            },
            "versions": {**versions(), "pyautoattack": package_version("pyautoattack")},
            "device": images.device.type,
            "norm": self.norm,
            "eps": list(self.eps),
            "seed": self.seed,
            "chunk": self.chunk,
            "micro_batch": self.micro_batch,
            "protocol": self.protocol.settings(),
        }
