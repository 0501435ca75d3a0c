"""Training a classifier on augmented, adversarial and purified images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pursamere.datasets import Dataset
from pursamere.denoisers import Denoiser
from pursamere.models import ConvClassifier, EDMUNet, load_checkpoint
from pursamere.noise import GaussianNoise
from pursamere.pretrained import SHIPPED, folder, known_name
from pursamere.pretrained.digits import make_denoiser
from pursamere.purifier import Purifier

from .adversarial import adversarial_images
from .augmentation import augment
from .configuration import ClassifierConfiguration
from .initial import seeded
from .order import generator as generator_of

_BATCH = 256
_ATTACKED = 512  # validation images for the accuracy under attack
_ATTACK_STEPS = 10
_ATTACK_STREAM, _EXACT_STREAM = 4, 5


def build_classifier(
    settings: ClassifierConfiguration,
    image_shape: tuple[int, ...],
    class_names: Sequence[str],
    images: Tensor | None = None,
) -> ConvClassifier:
    """Build the network, with the weights of ``settings.initial`` or weights drawn from the seed.

    ``images``, training images [N, C, H, W] in [0, 1], are needed for a whitening layer without ``settings.initial``.

    Raises:
        ValueError: ``settings.initial`` is not a classifier with the same architecture and classes.
    """
    with seeded(settings.seed):
        network = ConvClassifier(
            image_shape,
            len(class_names),
            settings.widths,
            residual=settings.residual,
            normalization=settings.normalization,
            groups=settings.groups,
            whitening=settings.whitening,
            class_names=class_names,
        )
    if settings.initial:
        loaded = load_checkpoint(settings.initial)
        if not isinstance(loaded, ConvClassifier) or loaded.arguments() != network.arguments():
            raise ValueError(
                f"initial must hold a ConvClassifier with the arguments {network.arguments()}, got {settings.initial}"
            )
        network.load_state_dict(loaded.state_dict())
    elif settings.whitening and images is not None:
        network.whiten(images)
    return network


def build_purifier(
    settings: ClassifierConfiguration, image_shape: tuple[int, ...], device: torch.device
) -> Purifier | None:
    """Build the purifier in front of the classifier, or return ``None`` if ``settings.purifier`` is empty.

    Raises:
        ValueError: ``settings.purifier`` is not a denoiser of such images.
    """
    if not settings.purifier:
        return None
    return Purifier(
        _build_denoiser(settings.purifier, image_shape, device),
        sigma=settings.purifier_sigma,
        radius=settings.purifier_radius,
        steps=settings.purifier_steps,
        step_size=settings.purifier_step_size or None,
        ascent_radius=settings.purifier_ascent_radius,
        direction=settings.purifier_direction,
        noise=GaussianNoise(draws=settings.purifier_draws, antithetic=settings.purifier_draws % 2 == 0),
        micro_batch=min(_BATCH, settings.batch_size),
        invariance="off",  # training needs no bitwise invariance, and small micro-batches are slow
    )


def _build_denoiser(source: str, image_shape: tuple[int, ...], device: torch.device) -> Denoiser:
    name = known_name(source)
    if name == "digits":
        denoiser: Any = make_denoiser(device=device)
    else:
        denoiser = load_checkpoint(folder(name) / "denoiser" if name in SHIPPED else source, device=device)
        if not isinstance(denoiser, EDMUNet):
            raise ValueError(f"purifier must hold a denoiser, got a {type(denoiser).__name__} in {source}")
    shape = tuple(denoiser.image_shape)
    if shape != image_shape:
        raise ValueError(f"purifier must denoise images {list(image_shape)}, got one for {list(shape)}")
    return denoiser


class ClassifierTask:
    """Cross-entropy on clean or adversarial images, or both, optionally purified.

    Adversarial images are found with the purifier differentiated as the identity (BPDA), except in the fraction
    ``adversarial_exact_fraction`` of the steps, where its gradient is exact.
    """

    def __init__(
        self, settings: ClassifierConfiguration, train: Dataset, validation: Dataset, device: torch.device
    ) -> None:
        self.settings = settings
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.validation = (validation.images.to(device), validation.labels.to(device))
        self.size = len(self.images)
        self.purifier = build_purifier(settings, tuple(self.images.shape[1:]), device)

    def losses(self, network: Any, rows: Tensor, mine: slice, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy per image."""
        settings = self.settings
        rows = rows.to(self.images.device)
        x = augment(self.images[rows], settings.shift, settings.flip, settings.cutout, generator)
        labels = self.labels[rows][mine]
        if settings.adversarial_eps > 0:
            start = (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)[mine]
            chosen = attacked_rows(len(x), settings.adversarial_fraction, mine).to(x.device)
            x = x[mine]
            gradient = "exact" if is_exact_step(generator, settings.adversarial_exact_fraction) else "identity"
            steps = settings.adversarial_steps
            found = self._adversarial(network, x[chosen], labels[chosen], start[chosen], steps, gradient)
            x = x.index_copy(0, chosen, found)
        else:
            x = x[mine]
        return functional.cross_entropy(
            self._logits(network, x), labels, reduction="none", label_smoothing=settings.label_smoothing
        )

    def _logits(self, network: Any, x: Tensor, gradient: str = "identity") -> Tensor:
        purified = x if self.purifier is None else self.purifier(x, gradient=gradient)
        logits: Tensor = network(purified).float()
        return logits

    def _adversarial(
        self, network: Any, x: Tensor, labels: Tensor, start: Tensor, steps: int, gradient: str = "identity"
    ) -> Tensor:
        def loss(images: Tensor) -> Tensor:
            return functional.cross_entropy(self._logits(network, images, gradient), labels, reduction="none")

        with _evaluating(network):  # batch normalization would mix the rows, and count adversaries in the making
            return adversarial_images(loss, x, start, self.settings.adversarial_eps, steps)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return validation cross-entropy and accuracy, and accuracy under attack on a subset."""
        images, labels = self.validation
        logits = torch.cat([self._logits(network, x) for x in images.split(_BATCH)])
        figures = {
            "cross-entropy": float(functional.cross_entropy(logits, labels)),
            "accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
        }
        if self.settings.adversarial_eps > 0:
            images, labels = images[:_ATTACKED], labels[:_ATTACKED]
            start = torch.rand(images.shape, generator=generator_of(0, _ATTACK_STREAM, 0), device="cpu")
            start = 2 * start.to(images.device) - 1
            batches = zip(images.split(_BATCH), labels.split(_BATCH), start.split(_BATCH), strict=True)
            found = [self._logits(network, self._adversarial(network, *part, _ATTACK_STEPS)) for part in batches]
            right = torch.cat(found).argmax(dim=1) == labels
            figures["accuracy under attack"] = float(right.float().mean())
        return figures

    def table(self, network: nn.Module) -> list[dict[str, float]]:
        """Validate the final network."""
        return [self.validate(network)]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def is_exact_step(generator: torch.Generator, fraction: float) -> bool:
    """Return whether a step is among the ``fraction`` of all steps that attack with the exact gradient.

    The choice follows from the seed of the step's generator, which is the same in every process and not drawn from: a
    GPU would have to be waited for.
    """
    choice = generator_of(generator.initial_seed(), _EXACT_STREAM, 0)
    return float(torch.rand((), generator=choice, device="cpu")) < fraction


def attacked_rows(size: int, fraction: float, mine: slice) -> Tensor:
    """Return which rows of the part ``mine`` of a batch are attacked, int64 on the CPU.

    They are evenly spread over the batch, so that every process has its share.
    """
    count = max(1, math.ceil(fraction * size - 1e-9))  # 0.07 * 100 is a little above 7
    index = torch.arange(size, device="cpu")  # not on a GPU, which every step would wait for
    return ((index + 1) * count // size > index * count // size)[mine].nonzero().squeeze(1)
