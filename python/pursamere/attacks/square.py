"""Square (Andriushchenko et al., ECCV 2020), a black-box random search, by the package pyautoattack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pursamere._validation import check_integer
from pursamere.determinism import check_evaluation_mode

from ._balls import Ball, check_problem, logits_of
from ._pyautoattack import NORMS, Wrapped, as_float32, check_size, isolated, package
from .attack import Attack, Hooks, Model, Target

__all__ = ["Square", "square"]


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int = 5000,
    norm: str = "linf",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Return adversarial images [B, C, H, W] found by Square, or the given images where it found none.

    Takes no gradients. Arguments and errors are those of :func:`autoattack`; ``progress`` is called with the number of
    queries made.
    """
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    ball = Ball(norm, eps, images.detach())
    check_integer("seed", seed, low=0)
    check_integer("queries", queries, low=1)
    module = package("square")
    check_size(images, norm)
    with torch.no_grad():
        right = logits_of(model, images, labels).argmax(1) == labels
    result = images.detach().clone()
    if not bool(right.any()):
        progress(queries)
        return result
    made = 0

    def advance() -> None:
        nonlocal made
        step = min(1, queries - made)
        made += step
        progress(step)

    # The package rescales its schedule for the size of the squares to ``queries``.
    attack = module.SquareAttack(
        Wrapped(model, images.dtype, advance), n_queries=queries, eps=float(eps), norm=NORMS[norm], seed=seed
    )
    with isolated(images.device), torch.no_grad():
        found = attack.perturb(as_float32(images[right]), labels[right].clone())
    progress(queries - made)
    result[right] = ball.rows(right).project(found.to(images.dtype))
    return result


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """:func:`square` as an attack of a protocol.

    Attributes:
        queries: queries per sample.
    """

    queries: int = 5000

    packages: ClassVar[tuple[str, ...]] = ("pyautoattack",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("queries", self.queries, low=1)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`square`."""
        model, queries, progress = target.attacked(), self.queries, hooks.progress
        return square(model, images, labels, eps=eps, norm=norm, seed=seed, queries=queries, progress=progress)

    @property
    def work(self) -> int:
        """The queries."""
        return self.queries

    def check_images(self, images: Tensor, norm: str) -> None:
        """Refuse images that are too small for it."""
        check_size(images, norm)
