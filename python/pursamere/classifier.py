"""A classifier behind a purifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._eager import eager_only
from ._validation import RANGE_TOLERANCE, check_finite_images, check_image_tensor, check_logits
from .derivative_check import depends_on
from .determinism import (
    FixedModule,
    NetworkCheck,
    check_evaluation_mode,
    map_micro_batches,
    parameters_of,
    repeatable_algorithms,
)
from .path_gradient import GradientOf
from .stepping import IterativePurifier, check_gradient

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PurifiedClassifier"]


class PurifiedClassifier(FixedModule):
    """Classifies purified images: images [B, C, H, W] in [0, 1] to logits [B, classes].

    The classifier runs in micro-batches too, so that logits have the same bits in any batch: of the purifier's
    ``micro_batch``, or of sizes that are found for the classifier as a purifier finds its own.

    There is no training mode: the constructor switches the purifier and the classifier to evaluation mode, and
    ``train()`` leaves them there, because attack libraries save a model's mode and restore it. Attributes are read-only
    after construction.

    Images outside [0, 1] by at most 1e-4 are treated as rounding errors. Float64 images are converted to float32 if the
    purifier and the classifier have parameters and none of these is float64.

    A subclass that overrides ``forward`` must call ``self.purifier(x, gradient=self.gradient)``:
    :func:`pursamere.evaluate` attacks it with other gradients than its own.

    Args:
        purifier: a :class:`pursamere.Purifier` or another :class:`pursamere.IterativePurifier`.
        classifier: any callable from images [N, C, H, W] to logits [N, classes]; call ``.eval()`` on a network
            that a function wraps.
        gradient: the gradient through the purifier: "exact", "straight_through", "identity" (BPDA) or "unrolled", see
            :meth:`pursamere.IterativePurifier.forward`. A claim of robustness must hold under the exact gradient *and*
            the others.
        clip: clip images to [0, 1] first, for attacks that leave the range on purpose (Nesterov momentum, added noise).
            The derivative of the clip is exact for "exact" and "unrolled", zero for pixels outside, and that of the
            identity for "straight_through" and "identity". Without ``clip``, images outside [0, 1] are an error.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``gradient`` is unknown.
    """

    def __init__(
        self,
        purifier: IterativePurifier,
        classifier: Callable[[Tensor], Tensor],
        gradient: str = "exact",
        *,
        clip: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(purifier, IterativePurifier):
            hint = "; the purifier comes first" if isinstance(classifier, IterativePurifier) else ""
            got = f"{type(purifier).__name__}{hint}"
            raise TypeError(f"purifier must be a pursamere.Purifier or another IterativePurifier, got {got}")
        if not callable(classifier):
            raise TypeError(f"classifier must be callable, got {type(classifier).__name__}")
        if isinstance(classifier, type):
            raise TypeError(f"classifier must be an instance, got the class {classifier.__name__}")
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = check_gradient(gradient)
        if not isinstance(clip, bool):
            raise TypeError(f"clip must be a bool, got {type(clip).__name__}")
        self.clip = clip
        self._network_check = NetworkCheck("classifier", purifier.micro_batch, purifier.invariance)
        self.eval()

    @property
    def class_names(self) -> Any:
        """The classifier's ``class_names``, one for each logit; ``None`` if it has none."""
        return getattr(self.classifier, "class_names", None)

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        replica._network_check = self._network_check.of_replica(self.classifier)
        return replica

    def _fixed_names(self) -> frozenset[str]:
        return frozenset(("purifier", "classifier", "gradient", "clip"))  # those of a subclass may change

    @eager_only
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes].

        Raises what the purifier raises, and:
            TypeError: the classifier does not return a floating-point tensor.
            ValueError: the classifier is in training mode, or does not return [N, classes] on the device of ``x``.
        """
        for name, part in self.named_children():  # including what a subclass adds
            if name != "purifier":
                check_evaluation_mode(name, part)
        x = check_finite_images("x", x) if self.clip else check_image_tensor("x", x)  # the purifier checks the rest
        if x.dtype == torch.float64 and self._is_narrower():
            x = x.float()
        purified = self.purifier(self._clipped(x) if self.clip else x, gradient=self.gradient)
        with repeatable_algorithms(x.device):
            (logits,) = map_micro_batches(self._logits, self._sizes(x), purified)
        return logits

    def micro_batch_sizes(self, x: Tensor) -> tuple[int, ...]:
        """Return the numbers of images per call of the classifier, the largest first.

        See :meth:`pursamere.IterativePurifier.micro_batch_sizes`.
        """
        with repeatable_algorithms(x.device):
            return self._sizes(x)

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        return self._network_check(self._probe, x, draws=1, eager=self._probe, network=self.classifier)

    def _is_narrower(self) -> bool:
        dtypes = {parameter.dtype for parameter in parameters_of(self)}
        return len(dtypes) > 0 and torch.float64 not in dtypes

    def _clipped(self, x: Tensor) -> Tensor:
        clipped = x.clamp(0.0, 1.0)
        if self.gradient in ("straight_through", "identity"):
            return GradientOf.apply(x, clipped.detach())
        # Rounding errors keep their derivative, as in check_images.
        return torch.where((x - clipped).abs() > RANGE_TOLERANCE, clipped, x)

    def _logits(self, images: Tensor) -> tuple[Tensor]:
        return (check_logits("classifier", self.classifier(images), images),)

    def _probe(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits and a gradient, rows first; the classifier is checked by these."""
        with torch.no_grad():
            (alone,) = self._logits(images.clone())  # by other kernels than with gradients, in some networks
        with torch.inference_mode(False), torch.enable_grad():
            leaf = images.clone().requires_grad_()
            (logits,) = self._logits(leaf.clone())  # a classifier may write into its input
            if not depends_on(logits, leaf):
                return (alone, logits)
            return (alone, logits.detach(), *torch.autograd.grad(logits, leaf, logits.detach()))

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        return f"gradient={self.gradient!r}" + (", clip=True" if self.clip else "")
