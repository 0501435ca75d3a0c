"""The model under attack: as it is judged, and in the forms that attacks differentiate or transfer from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pursamere._hashes import sha256
from pursamere._validation import NotFiniteError, check_logits
from pursamere.attacks.attack import Attack, Model
from pursamere.classifier import PurifiedClassifier
from pursamere.derivative_check import Agreement, worst
from pursamere.determinism import check_evaluation_mode, copy_with, map_micro_batches
from pursamere.stepping import IterativePurifier

from .copies import check_copyable, record_gradients
from .determinism import first_difference
from .halving import nan_where_not_finite

__all__ = ["EOT_SAMPLES", "FixedBatches", "Target"]

EOT_SAMPLES = 4  # draws of a random defense's noise over which attacks average its logits

_WRAP = "wrapped in a module other than a PurifiedClassifier, it is attacked through its own gradient only"


class FixedBatches(nn.Module):
    """A model that always runs on batches of one size, the last one padded: results don't depend on the batch."""

    def __init__(self, model: Model, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes]."""
        (logits,) = map_micro_batches(lambda part: (check_logits("model", self.model(part), part),), (self.size,), x)
        return logits


class _Averaged(nn.Module):
    """The mean logits of several calls of a random model (expectation over transformation)."""

    def __init__(self, model: Model, calls: int) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes]."""
        return torch.stack([self.model(x) for _ in range(self.calls)]).mean(0)


class Target:
    """A model to evaluate.

    Args:
        model: a :class:`pursamere.PurifiedClassifier`, attacked through every gradient it has, or any callable from
            images to logits, attacked through its own gradient.
        micro_batch: batch size for a model that is not a ``PurifiedClassifier``.

    Attributes:
        model: the model that judges: the given one, run in batches of one size if it is not a ``PurifiedClassifier``;
            a copy of a random one, since it is reset again and again.
        purifier: the purifier of ``model``, if it has one.
        bare: the classifier without the purifier, if there is one.
        classes: number of logits, once :meth:`count_classes` has run.

    Raises:
        TypeError: ``model`` is not callable, or cannot be copied with another gradient.
        ValueError: ``model`` has a layer in training mode that is random, mixes samples or updates itself, or contains
            a purifier whose gradient is not its own.
    """

    def __init__(self, model: Model, micro_batch: int) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        if isinstance(model, IterativePurifier):
            raise TypeError("model must be a classifier: wrap the purifier, PurifiedClassifier(purifier, classifier)")
        check_evaluation_mode("model", model)
        self.original = model
        self.purifier: IterativePurifier | None = None
        self.bare: Model | None = None
        self.classes = 0
        if not isinstance(model, PurifiedClassifier):
            _check_inner_gradients(model)
            self.model: Model = FixedBatches(model, micro_batch)
            return
        check_copyable("model", model)
        check_copyable("model.purifier", model.purifier)
        self.model, self.purifier = model, model.purifier
        self.bare = FixedBatches(model.classifier, micro_batch)
        if self.is_random:
            if not callable(getattr(self.purifier, "reset", None)):
                raise TypeError("model.purifier says that it is random, so it must have a method reset(seed)")
            self.purifier = copy_with(self.purifier)
            self.model = self._purified(self.purifier, model.gradient)

    @property
    def description(self) -> str:
        """The model as ``print`` shows it."""
        return _describe(self.original)

    @property
    def is_random(self) -> bool:
        """Whether the defense says that it draws fresh noise in every call."""
        return self.purifier is not None and self.purifier.random

    def reset(self, seed: int) -> None:
        """Seed what a random defense draws from now on; does nothing for others."""
        if self.is_random:
            self.purifier.reset(seed)  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def count_classes(self, images: Tensor) -> int:
        """Return the number of logits, and store it in ``classes``.

        Raises:
            NotFiniteError: the model is NaN or infinite on every image.
        """
        for image in images:
            try:
                self.classes = self._checked(image[None]).shape[1]
                return self.classes
            except NotFiniteError as error:
                reason = error
        raise NotFiniteError(f"model has no logits for any of the {len(images)} images: {reason}")

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images [n, C, H, W], NaN where the model raises ``NotFiniteError``."""
        return nan_where_not_finite(self._checked, images, (self.classes,))

    @torch.no_grad()
    def check_attackable(self, images: Tensor, gradients: Iterable[str], seed: int) -> None:
        """Require that copies of the model with these gradients behave as attacks assume.

        Raises:
            ValueError: the logits of a copy differ, or it does not call its purifier with its gradient.
        """
        if self.purifier is None:
            return
        self.reset(seed)
        expected = self.logits(images)
        for gradient in gradients:
            purifier = copy_with(self.purifier)
            if self.is_random:
                purifier.reset(seed)  # type: ignore[operator]
            seen = record_gradients(purifier)
            model = self._purified(purifier, gradient)
            logits = nan_where_not_finite(model, images, (self.classes,))
            if seen != {gradient}:
                got = f"it was called with {', '.join(map(repr, sorted(seen)))}" if seen else "it was not called"
                raise ValueError(
                    f"model, a {type(self.original).__name__}, must call self.purifier(x, gradient=self.gradient), but "
                    f"for gradient={gradient!r} {got} on the first {len(images)} images; {_WRAP}"
                )
            different = first_difference(expected, logits)
            if different is not None:
                sample, logit, first, second = different
                raise ValueError(
                    f"model, a {type(self.original).__name__}, must give the same logits whatever its gradient, but a "
                    f"copy with gradient={gradient!r} has {second!r} for logit {logit} of sample {sample}, and not "
                    f"{first!r}; {_WRAP}"
                )

    def check_derivative(self, attacks: Iterable[Attack], images: Tensor) -> Agreement | None:
        """Compare autograd's derivative of the purifier with finite differences, if an attack needs it.

        Raises:
            RuntimeError: they differ.
        """
        if not any(attack.differentiates_purifier for attack in attacks):
            return None
        parts = self.original.modules() if isinstance(self.original, nn.Module) else ()
        purifiers = [part.purifier for part in parts if isinstance(part, PurifiedClassifier)]
        agreements = [purifier.check_derivative(images) for purifier in purifiers]
        known = [agreement for agreement in agreements if agreement is not None]
        return worst(known) if known else None

    def attacked(self, gradient: str = "exact") -> Model:
        """The model with this gradient. Logits of a random defense are averaged over some draws (EOT)."""
        if self.purifier is None:
            return self.model
        model = self._purified(self.purifier, gradient)
        return _Averaged(model, EOT_SAMPLES) if self.is_random else model

    def sources(self, names: tuple[str, ...]) -> list[Model]:
        """The models to transfer from that exist; see :class:`pursamere.attacks.Transfer`."""
        found: list[Model] = []
        for name in names:
            if name == "bare" and self.bare is not None:
                found.append(self.bare)
            elif name != "bare" and (variant := self._variant(name)) is not None:
                found.append(self._purified(variant, "exact"))
        return found

    def micro_batches(self, attacks: Iterable[Attack], images: Tensor) -> dict[str, tuple[int, ...]]:
        """The sizes in which the networks of a ``PurifiedClassifier`` run on such images, by what runs."""
        if not isinstance(self.model, PurifiedClassifier):
            return {}
        purifier = self.model.purifier
        sizes = {"purifier": purifier.micro_batch_sizes(images), "classifier": self.model.micro_batch_sizes(images)}
        if any(attack.differentiates_purifier for attack in attacks):
            sizes["exact gradient"] = purifier.micro_batch_sizes(images, differentiated=True)
        return sizes

    def behavior_sha256(self, images: Tensor, seed: int) -> str:
        """A fingerprint of some logits, which also changes with functions and attributes that are not parameters."""
        self.reset(seed)
        return sha256(self.logits(images).float())

    def sha256(self) -> str:
        """A fingerprint of the parameters, the buffers and the ``repr``."""
        parts: list[str | Tensor] = []
        for part in (self.original, self.purifier and self.purifier.denoiser):
            parts.append(_describe(part))
            if isinstance(part, nn.Module):
                for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                    parts += [name, tensor]
        return sha256(*parts)

    def _checked(self, images: Tensor) -> Tensor:
        return check_logits("model", self.model(images), images)

    def _purified(self, purifier: IterativePurifier, gradient: str) -> PurifiedClassifier:
        """A copy of the given model, with its class and hooks but another purifier and gradient."""
        assert isinstance(self.original, PurifiedClassifier)
        return copy_with(self.original, purifier=purifier, gradient=gradient)

    def _variant(self, name: str) -> IterativePurifier | None:
        """The purifier with another noise seed or half as many steps, if it can have fewer."""
        if self.purifier is None:
            return None
        noise, steps = self.purifier.noise, self.purifier.steps
        if name == "other_noise":
            return copy_with(self.purifier, noise=replace(noise, seed=noise.seed + 1))
        return copy_with(self.purifier, steps=steps // 2) if steps > 1 else None


def _check_inner_gradients(model: Model) -> None:
    """Refuse a model with an inner gradient that is a surrogate, since nothing would attack the exact one."""
    for path, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(part, PurifiedClassifier) and part.gradient not in ("exact", "unrolled"):
            raise ValueError(
                f"model is attacked through its own gradient, but that of its part {path!r} is {part.gradient!r}; "
                "make it with gradient='exact'"
            )


def _describe(part: object) -> str:
    """The ``repr`` of a module, or the name of a function."""
    return repr(part) if isinstance(part, nn.Module) else getattr(part, "__qualname__", type(part).__qualname__)
