"""No attack: the images as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .attack import Attack, Hooks, Target

__all__ = ["Clean"]


@dataclass(frozen=True)
class Clean(Attack):
    """Leaves the images as they are, to measure the clean accuracy; every protocol begins with it."""

    name: str = "clean"

    perturbs: ClassVar[bool] = False

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Return ``images``."""
        return images
