"""A classifier behind a purifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ._validation import check_choice
from .micro_batch import map_micro_batches
from .purifier import GRADIENTS, Purifier


class PurifiedClassifier(nn.Module):
    """Images [B, C, H, W] in [0, 1] to the logits [B, classes] of the purified images.

    The classifier runs on micro-batches of the purifier's size, so that the logits too have the same bits in any batch.

    Args:
        purifier: a :class:`pursamere.Purifier`.
        classifier: any callable from images to logits; call ``.eval()`` on it first.
        gradient: how gradients with respect to the images pass through the purifier: "unrolled", automatic
            differentiation through every step (exact), or "identity", the purifier treated as the identity (BPDA). A
            claim of robustness must hold under both.

    Raises:
        TypeError: ``purifier`` or ``classifier`` is of the wrong type.
        ValueError: ``gradient`` is unknown.
    """

    def __init__(self, purifier: Purifier, classifier: Callable[[Tensor], Tensor], gradient: str = "unrolled") -> None:
        super().__init__()
        if not isinstance(purifier, Purifier):
            raise TypeError(f"purifier must be a pursamere.Purifier, got {type(purifier).__name__}")
        if not callable(classifier):
            raise TypeError(f"classifier must be callable, got {type(classifier).__name__}")
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = check_choice("gradient", gradient, GRADIENTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes]. Raises what the purifier raises."""
        purified = self.purifier(x, gradient=self.gradient)
        (logits,) = map_micro_batches(
            lambda part: (self.classifier(part),), purified, self.purifier.micro_batch_on(x.device)
        )
        return logits

    def extra_repr(self) -> str:
        """Return the parameters, for ``print``."""
        return f"gradient={self.gradient!r}"
