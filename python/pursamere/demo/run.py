"""The demo from data to results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import pursamere as ps
from pursamere._validation import check_choice, check_integer
from pursamere.attacks import pgd
from pursamere.attacks.attack import Model
from pursamere.datasets import Dataset
from pursamere.demo import results as names
from pursamere.demo.classifier import predict
from pursamere.demo.results import Result, outcome, worst_case
from pursamere.demo.settings import MOST_SAMPLES, SETTINGS, Settings
from pursamere.demo.subject import Subject, digits, mnist

Bar = Callable[[int, str, str], AbstractContextManager[Callable[[int], None]]]
"""``bar(total, description, unit)`` shows a progress bar; its block gets a function that advances it."""


@dataclass
class Demo:
    """Everything that the table, the picture and the JSON file are made of.

    Attributes:
        settings: what was asked for.
        subject: the networks, and the images that they have not seen.
        attacked: the first ``settings.samples`` of these images.
        purifier: what the settings describe, around the denoiser.
        adversarial: by eps, the images [B, 1, H, W] that the attack on the undefended classifier found.
        results: one per classifier, attack and eps.
        seconds: wall time of each phase.
        images_per_second: of purification, without gradients.
    """

    settings: Settings
    subject: Subject
    attacked: Dataset
    purifier: ps.Purifier
    adversarial: dict[float, Tensor] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of a block to ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def run_demo(settings: Settings, bar: Bar) -> Demo:
    """Train, purify and attack; deterministic but for the timings."""
    check_choice("dataset", settings.dataset, SETTINGS)
    check_integer("samples", settings.samples, low=1, high=MOST_SAMPLES)
    start = time.perf_counter()
    if settings.dataset == "mnist":
        subject = mnist()
    else:
        with bar(settings.epochs, "train the classifier", "epoch") as advance:
            subject = digits(settings, advance)
    demo = Demo(settings, subject, subject.test.head(settings.samples), build_purifier(subject.denoiser, settings))
    demo.seconds["training" if settings.dataset == "digits" else "loading"] = time.perf_counter() - start
    _measure_speed(demo)
    _evaluate_clean(demo)
    for eps in settings.eps:
        _attack(demo, eps, bar)
    return demo


def build_purifier(denoiser: Any, settings: Settings) -> ps.Purifier:
    """The purifier that the settings describe."""
    return ps.Purifier(
        denoiser,
        sigma=settings.sigma,
        steps=settings.steps,
        step_size=settings.step_size,
        ascent_radius=settings.ascent_radius,
        radius=settings.radius,
        direction=settings.direction,
        noise=ps.GaussianNoise(seed=settings.noise_seed, draws=settings.draws),
        micro_batch=settings.micro_batch,
    )


def _measure_speed(demo: Demo) -> None:
    """The median of three, after one call for what is done only once (the noise, the invariance check)."""
    images, durations = demo.attacked.images, []
    demo.purifier(images)
    for _ in range(3):
        start = time.perf_counter()
        demo.purifier(images)
        durations.append(time.perf_counter() - start)
    demo.images_per_second = len(images) / sorted(durations)[1]
    demo.seconds["speed measurement"] = sum(durations)


def _evaluate_clean(demo: Demo) -> None:
    images, labels = demo.attacked.images, demo.attacked.labels
    with demo.timed("evaluation"):
        for model, defense in ((names.UNDEFENDED, demo.subject.classifier), (names.PURIFIED, _defended(demo))):
            demo.results.append(outcome(model, names.CLEAN, 0.0, predict(defense, images), labels))


def _attack(demo: Demo, eps: float, bar: Bar) -> None:
    """All attacks at one radius. What an attack found is judged anew, by the classifier as it is deployed."""
    settings, labels = demo.settings, demo.attacked.labels
    defended = _defended(demo)

    def attack(model: Model, attack: str, steps: int, stop_at_success: bool) -> Tensor:
        with demo.timed(f"attack {attack}"), bar(steps, f"attack {attack}, eps {eps:.2f}", "step") as advance:
            return pgd(
                model,
                demo.attacked.images,
                labels,
                eps=eps,
                steps=steps,
                seed=_attack_seed(settings.seed, attack, eps),
                stop_at_success=stop_at_success,
                progress=advance,
            )

    def judge(model: str, attack: str, images: Tensor) -> None:
        with demo.timed("evaluation"):
            predictions = predict(demo.subject.classifier if model == names.UNDEFENDED else defended, images)
        demo.results.append(outcome(model, attack, eps, predictions, labels))

    adversarial = attack(demo.subject.classifier, names.PGD, settings.bare_attack_steps, False)
    demo.adversarial[eps] = adversarial
    judge(names.UNDEFENDED, names.PGD, adversarial)
    demo.results.append(worst_case(demo.results, names.UNDEFENDED, eps))
    judge(names.PURIFIED, names.TRANSFER, adversarial)
    for name, gradient in ((names.BPDA, "identity"), (names.EXACT, "exact")):
        model = ps.PurifiedClassifier(demo.purifier, demo.subject.classifier, gradient=gradient)
        judge(names.PURIFIED, name, attack(model, name, settings.attack_steps, True))
    demo.results.append(worst_case(demo.results, names.PURIFIED, eps))


def _defended(demo: Demo) -> ps.PurifiedClassifier:
    return ps.PurifiedClassifier(demo.purifier, demo.subject.classifier, gradient="identity")


def _attack_seed(seed: int, attack: str, eps: float) -> int:
    """A seed per attack, so that attacks do not share their random starts; the same in every process."""
    digest = hashlib.sha256(f"{seed} {attack} {eps!r}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
