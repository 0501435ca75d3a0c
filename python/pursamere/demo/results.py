"""The outcomes of the demo, and the table it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pursamere._text import aligned
from pursamere.evaluation.result import wilson_interval

UNDEFENDED, PURIFIED = "undefended", "purified"
CLEAN, PGD, TRANSFER, BPDA, EXACT, WORST = "none", "pgd", "transfer", "bpda", "exact", "worst case"


@dataclass(frozen=True)
class Result:
    """How one classifier did under one attack.

    Attributes:
        model: ``"undefended"`` or ``"purified"``.
        attack: what was done to the images; ``"worst case"`` counts a sample only if it withstood everything.
        eps: Linf radius of the attack in pixel units, 0 for none.
        correct: bool [B], which samples were classified correctly.
        predictions: int64 [B], the predicted classes; ``None`` for the worst case, which has no single one.
    """

    model: str
    attack: str
    eps: float
    correct: Tensor
    predictions: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """The share of samples classified correctly."""
        return int(self.correct.sum()) / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "model": self.model,
            "attack": self.attack,
            "eps": self.eps,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "correct": self.correct.int().tolist(),
            "predictions": None if self.predictions is None else self.predictions.tolist(),
        }


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The predicted classes [B] of images [B, C, H, W]."""
    return model(images).argmax(dim=1)


def outcome(model: str, attack: str, eps: float, predictions: Tensor, labels: Tensor) -> Result:
    """The result of one attack from the predicted classes."""
    return Result(model, attack, eps, predictions == labels, predictions)


def worst_case(results: Iterable[Result], model: str, eps: float) -> Result:
    """Per sample, whether ``model`` withstood every attack at ``eps`` and was right on the clean image.

    A single attack overstates robustness: gradients through a purifier may mislead, so that an attack without them is
    the stronger one on some samples.
    """
    faced = [result.correct for result in results if result.model == model and result.eps in (0.0, eps)]
    return Result(model, WORST, eps, torch.stack(faced).all(dim=0))


def find(results: Iterable[Result], model: str, attack: str, eps: float) -> Result:
    """The one result of these three."""
    (result,) = [r for r in results if (r.model, r.attack, r.eps) == (model, attack, eps)]
    return result


def format_table(results: Sequence[Result], names: dict[str, str]) -> str:
    """A table with a line per result; ``names`` describes the attacks."""
    rows = [("model", "attack (Linf)", "eps", "accuracy", "95 % interval")]
    for result in results:
        low, high = result.interval
        eps = f"{result.eps:.2f}" if result.eps else "-"
        rows.append((result.model, names[result.attack], eps, f"{result.accuracy:.3f}", f"{low:.3f} - {high:.3f}"))
    return aligned(rows)
