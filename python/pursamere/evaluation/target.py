"""What is under attack: the model as it is judged, and the forms in which attacks see it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pursamere.attacks import TARGETED_DLR
from pursamere.classifier import PurifiedClassifier
from pursamere.evaluation.protocol import Attack
from pursamere.iterative import IterativePurifier
from pursamere.micro_batch import map_micro_batches
from pursamere.networks import check_evaluation_mode
from pursamere.purifier import Purifier

Model = Callable[[Tensor], Tensor]

# Logits are averaged over so many draws of a random defence's noise when it is attacked.
EOT_SAMPLES = 4


class FixedBatches(nn.Module):
    """A model that always runs on batches of one size, the last one padded, so that a sample's logits are its own."""

    def __init__(self, model: Model, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes]."""
        (logits,) = map_micro_batches(lambda part: (self.model(part),), self.size, x)
        return logits


class _Averaged(nn.Module):
    """The mean logits of several calls of a random model (expectation over its noise)."""

    def __init__(self, model: Model, calls: int) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, classes]."""
        return torch.stack([self.model(x) for _ in range(self.calls)]).mean(0)


class Target:
    """A model to evaluate.

    Args:
        model: a :class:`pursamere.PurifiedClassifier`, which is attacked in every way, or any callable from images to
            logits, attacked through its own gradient.
        micro_batch: for a model that is no ``PurifiedClassifier``: it runs on batches of this size.
    """

    def __init__(self, model: Model, micro_batch: int) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        check_evaluation_mode("model", model)
        self.original = model
        self.purifier: IterativePurifier | None = None
        self.bare: Model | None = None
        if isinstance(model, PurifiedClassifier):
            self.purifier = copy.copy(model.purifier)  # a random one is reset again and again
            if self.is_random and not callable(getattr(self.purifier, "reset", None)):
                raise TypeError("model.purifier says that it is random, so it must have a method reset(seed)")
            self.model: Model = self._purified(self.purifier, "identity")
            self.bare = FixedBatches(model.classifier, micro_batch)
        else:
            self.model = FixedBatches(model, micro_batch)

    @property
    def description(self) -> str:
        """The model as ``print`` shows it."""
        return _describe(self.original)

    @property
    def is_random(self) -> bool:
        """Whether the defence says that it draws fresh noise in every call."""
        return self.purifier is not None and self.purifier.random

    def reset(self, seed: int) -> None:
        """Make what a random defence draws from now on a function of ``seed``; nothing for others."""
        if self.is_random:
            self.purifier.reset(seed)  # type: ignore[union-attr, operator]

    def attacked(self, gradient: str) -> Model:
        """The model with gradients of that kind."""
        if self.purifier is None:
            return self.model
        model = self._purified(self.purifier, gradient)
        return _Averaged(model, EOT_SAMPLES) if self.is_random else model

    def sources(self, names: tuple[str, ...]) -> list[Model]:
        """The models to transfer from."""
        found: list[Model] = []
        for name in names:
            if name == "bare" and self.bare is not None:
                found.append(self.bare)
            elif name != "bare" and (variant := self._variant(name)) is not None:
                found.append(self._purified(variant, "exact"))
        return found

    def reason_against(self, attack: Attack, classes: int) -> str | None:
        """Why an attack has nothing to attack here, or ``None``; ``classes`` is the number of logits."""
        if classes < (needed := {"dlr": 3, TARGETED_DLR: 4}.get(attack.loss, 2)):
            return f"its loss needs at least {needed} classes, and there are {classes}"
        if attack.gradient != "exact" and self.purifier is None:
            return "the model is no PurifiedClassifier, so its gradient has one form only"
        if attack.kind == "transfer" and not self.sources(attack.sources):
            return "there is no such model to transfer from"
        if attack.ere_weight and not isinstance(self.purifier, Purifier):
            return "the defence has no expected reconstruction error of its own"
        if attack.kind == "autoattack" and self.is_random:
            return "its standard version is for deterministic defences"
        return None

    @torch.no_grad()
    def behaviour_sha256(self, images: Tensor, seed: int) -> str:
        """A fingerprint of some logits: functions and plain attributes are no parameters, but show in these."""
        self.reset(seed)
        return hashlib.sha256(self.model(images).float().cpu().numpy().tobytes()).hexdigest()

    def sha256(self) -> str:
        """A fingerprint of the parameters, the buffers and what ``repr`` tells."""
        digest = hashlib.sha256()
        for part in (self.original, self.purifier and self.purifier.denoiser):
            digest.update(f"{_describe(part)}\n".encode())
            if isinstance(part, nn.Module):
                for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                    values = tensor.detach().cpu().contiguous()
                    digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
                    digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _purified(self, purifier: IterativePurifier, gradient: str) -> Model:
        return PurifiedClassifier(purifier, self.original.classifier, gradient=gradient)  # type: ignore[attr-defined]

    def _variant(self, name: str) -> IterativePurifier | None:
        """The purifier with another noise seed, or with half as many steps."""
        variant = copy.copy(self.purifier)
        if variant is None:
            return None
        if name == "other_noise":
            variant.noise = replace(variant.noise, seed=variant.noise.seed + 1)
        elif variant.steps < 2:
            return None
        else:
            variant.steps //= 2
        return variant


def _describe(part: object) -> str:
    """What a module's ``repr`` tells, or the name of a function."""
    return repr(part) if isinstance(part, nn.Module) else getattr(part, "__qualname__", type(part).__qualname__)
