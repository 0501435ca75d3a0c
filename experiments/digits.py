"""What the experiments on the 8x8 digits share: images, classifier, denoiser."""

from __future__ import annotations

from runs import Target

import pursamere as ps
from pursamere._threads import cpu_threads
from pursamere.pretrained.digits import train_classifier

EPS = (0.10, 0.15)


def target(split: str) -> Target:
    train = ps.datasets.load("digits", "train")
    with cpu_threads(1):  # on which the weights' last bits depend
        classifier = train_classifier(train, seed=0)
    return Target(ps.datasets.load("digits", split), classifier, EPS, split)


def denoiser(bandwidth: float) -> ps.denoisers.KernelDensity:
    return ps.denoisers.KernelDensity(ps.datasets.load("digits", "train").images, bandwidth)
