"""What the experiments on the 8x8 digits share: images, classifier, denoiser."""

from __future__ import annotations

from runs import Subject

import pursamere as ps
from pursamere.demo.classifier import train_classifier

EPS = (0.10, 0.15)


def subject(split: str) -> Subject:
    train = ps.datasets.load("digits", "train")
    return Subject(ps.datasets.load("digits", split), train_classifier(train, seed=0), EPS, split)


def denoiser(bandwidth: float) -> ps.denoisers.KernelDensity:
    return ps.denoisers.KernelDensity(ps.datasets.load("digits", "train").images, bandwidth)
