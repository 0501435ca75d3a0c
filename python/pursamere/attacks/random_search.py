"""Random search: the weakest black-box attack. An attack that finds less is broken, or misled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pursamere._validation import check_integer
from pursamere.determinism import check_evaluation_mode

from ._balls import Ball, check_problem, logits_of
from .attack import Attack, Hooks, Model, Target
from .losses import margin

__all__ = ["RandomSearch", "random_search"]


def random_search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int = 100,
    norm: str = "linf",
    seed: int = 0,
) -> Tensor:
    """Return adversarial images [B, C, H, W]: of each image and random ones around it, that of smallest margin.

    The random images are corners of the ball for "linf" and uniform directions for "l2", clipped to [0, 1]. Takes no
    gradients.

    Args:
        model: images [N, C, H, W] to logits [N, classes].
        images: [B, C, H, W] in [0, 1].
        labels: [B], int64.
        eps: radius of the ball in pixel units.
        queries: random images per sample, at least 1.
        norm: "linf" or "l2".
        seed: seed of the random images, which are the same on every device.

    Raises:
        TypeError: an argument of the wrong type, or the model does not return a floating tensor.
        ValueError: an argument out of its range, or the model does not return logits or has a layer in training mode
            that is random, mixes samples or updates itself.
        NotFiniteError: logits are NaN or infinite.
    """
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    check_integer("queries", queries, low=1)
    generator = torch.Generator("cpu").manual_seed(check_integer("seed", seed, low=0))
    ball = Ball(norm, eps, images)
    best = images.detach().clone()
    with torch.no_grad():
        best_margin = margin(logits_of(model, images, labels), labels)
        for _ in range(queries):
            direction = torch.randn(images.shape, generator=generator, dtype=images.dtype, device="cpu").to(
                images.device
            )
            candidate = ball.step(images, direction, eps)
            found = margin(logits_of(model, candidate, labels), labels)
            better = found < best_margin
            best[better], best_margin[better] = candidate[better], found[better]
    return best


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """:func:`random_search` as an attack of a protocol.

    Attributes:
        queries: random images per sample.
    """

    queries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("queries", self.queries, low=1)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`random_search`."""
        model = target.attacked()
        return random_search(model, images, labels, eps=eps, norm=norm, seed=seed, queries=self.queries)

    @property
    def work(self) -> int:
        """The queries."""
        return self.queries
