"""What the experiments on MNIST share: the networks that come with the library, images, and the purifier's settings."""

from __future__ import annotations

from typing import Any

from runs import MICRO_BATCH, Target

import pursamere as ps

EPS = (0.2, 0.3)


def target(split: str) -> Target:
    images = ps.datasets.load("mnist", split)
    return Target(images, ps.load_pretrained("mnist").classifier, EPS, split)


def purifier(draws: int, **options: Any) -> ps.Purifier:
    noise = ps.GaussianNoise(draws=draws)
    micro_batch = max(1, MICRO_BATCH // draws)
    return ps.Purifier(ps.load_pretrained("mnist").denoiser, noise=noise, micro_batch=micro_batch, **options)
