"""Transfer attacks: adversarial images found on other models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pursamere._validation import check_choice, check_integer
from pursamere.determinism import check_evaluation_mode

from ._balls import check_problem, logits_of
from .attack import Attack, Hooks, Model, Target
from .losses import margin
from .pgd import pgd

__all__ = ["Transfer", "transfer"]

_SOURCES = ("bare", "other_noise", "fewer_steps")


def transfer(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    sources: Iterable[Model],
    eps: float,
    steps: int = 100,
    norm: str = "linf",
    loss: str = "margin",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Return adversarial images [B, C, H, W]: of each image and what :func:`pgd` finds on each source, the best one.

    The best one has the smallest margin on ``model``. On a source, PGD does not stop at success but pushes images deep
    into a wrong class, where they transfer better.

    Args:
        model: images [N, C, H, W] to logits [N, classes]; only queried.
        images: [B, C, H, W] in [0, 1].
        labels: [B], int64.
        sources: differentiable models of the same classes, attacked in place of ``model``.
        eps: radius of the ball in pixel units.
        steps: gradient steps on each source.
        norm: "linf" or "l2".
        loss: see :func:`pgd`.
        seed: seed of the random starts.
        progress: called with the number of gradient steps done, ``steps`` for each source.

    Raises what :func:`pgd` raises.
    """
    if isinstance(sources, str | torch.nn.Sequential) or not isinstance(sources, Iterable):
        raise TypeError(f"sources must be models, for example [source], got {type(sources).__name__}")
    sources = list(sources)
    for source in sources:
        if not callable(source):
            raise TypeError(f"sources must be models, got {source!r} among them")
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    best = images.detach().clone()
    with torch.no_grad():
        best_margin = margin(logits_of(model, best, labels), labels)
    for source in sources:
        found = pgd(
            source,
            images,
            labels,
            eps=eps,
            steps=steps,
            norm=norm,
            loss=loss,
            seed=seed,
            stop_at_success=False,
            progress=progress,
        )
        with torch.no_grad():
            reached = margin(logits_of(model, found, labels), labels)
        better = reached < best_margin
        best[better], best_margin[better] = found[better], reached[better]
    return best


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """:func:`transfer` as an attack of a protocol.

    Attributes:
        sources: what is attacked in place of the target: "bare" (its classifier without the purifier), "other_noise"
            (the target with another seed of the purifier's noise) or "fewer_steps" (with half the purifier's steps).
        steps: gradient steps on each source.
    """

    sources: tuple[str, ...]
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sources, str):
            raise TypeError(f"sources must be a tuple of names, got the string {self.sources!r}")
        if not self.sources:
            raise ValueError("sources must name at least one model to transfer from, got none")
        for source in self.sources:
            check_choice("sources", source, _SOURCES)
        check_integer("steps", self.steps, low=1)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`transfer`."""
        return transfer(
            target.attacked(),
            images,
            labels,
            sources=target.sources(self.sources),
            eps=eps,
            norm=norm,
            seed=seed,
            steps=self.steps,
            progress=hooks.progress,
        )

    @property
    def differentiates_purifier(self) -> bool:
        """Whether a source has a purifier."""
        return any(source != "bare" for source in self.sources)

    @property
    def work(self) -> int:
        """Steps on all sources."""
        return self.steps * len(self.sources)

    @property
    def _cost_of_step(self) -> float:
        return 1.0  # a gradient, if not the target's

    def reason_against(self, target: Target) -> str | None:
        """Only purified classifiers have such sources."""
        return None if target.sources(self.sources) else "there is no such model to transfer from"
