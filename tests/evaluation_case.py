"""A small evaluation for processes of their own: ``python evaluation_case.py FOLDER [SHARD] [KILL_AFTER]``."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

import pursamere as ps
from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere.attacks import APGD, PGD, Clean, RandomSearch, Square
from pursamere.evaluation import IncompleteRunError, Protocol

EPS = (0.05, 0.1)
PROTOCOL = Protocol(
    "tiny",
    (
        Clean(),
        RandomSearch("random-search", queries=3),
        PGD("pgd-margin-bpda", gradient="identity", steps=3),
        PGD("pgd-margin-short", steps=2),
        PGD("pgd-margin", steps=5),
        APGD("apgd-t", loss="targeted_dlr", steps=2, restarts=2, survivors_only=True),
        Square("square", queries=4, survivors_only=True),
        PGD("first", steps=2, samples=5),
        PGD("sweep", steps=2, samples=4, sweep=True),
    ),
    "nearly everything",
    ("pgd-margin-short", "pgd-margin"),
)


def model_and_data(samples: int = 13):
    """A purified classifier of four blobs, and images of which it gets most right."""
    generator = torch.Generator().manual_seed(0)
    means = 0.2 + 0.6 * torch.rand(4, 1, 3, 3, generator=generator)
    purifier = ps.Purifier(
        ps.denoisers.GaussianMixture(means, 0.1),
        sigma=0.2,
        steps=2,
        radius=0.05,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
        micro_batch=1,  # a linear layer rounds differently in some batches
    )
    labels = torch.arange(samples) % 4
    images = (means[labels] + 0.12 * torch.randn(samples, 1, 3, 3, generator=generator)).clamp(0, 1)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.utils.skip_init(torch.nn.Linear, 9, 4))
    with torch.no_grad():
        # -5 times the squared distances to the means, up to a term that all classes share.
        classifier[1].weight.copy_(10 * means.flatten(1))
        classifier[1].bias.copy_(-5 * means.flatten(1).square().sum(1))
    return ps.PurifiedClassifier(purifier, classifier.eval()), images, labels


@contextmanager
def bar(total, description, kill_after=math.inf):
    """A progress bar that must end at its total; it kills the process after a share of it."""
    done = 0

    def advance(amount):
        nonlocal done
        done += amount
        if done >= kill_after * total:
            os.kill(os.getpid(), signal.SIGKILL)

    yield advance
    assert done == total


def run(folder, shard=None, kill_after=math.inf, **options):
    model, images, labels = model_and_data()
    options = {"eps": EPS, "preset": PROTOCOL, "chunk": 4, "threads": 1, **options}
    return evaluate(
        model, images, labels, folder=folder, shard=shard, bar=partial(bar, kill_after=kill_after), **options
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "outcomes.csv", newline="") as stream:
        return list(csv.DictReader(stream))


class Smooth(nn.Module):
    """A robust linear model whose robust accuracy is known: the margin of class 1 is <w, x - 0.5>."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(16, generator=torch.Generator().manual_seed(1))

    def logits(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score, -100 + 0 * score, -200 + 0 * score], 1)

    def forward(self, x):
        return self.logits(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _evaluate.write_summary = lambda *_: None  # saves a third of the time; only outcomes.csv is looked at
    chosen = tuple(int(n) for n in sys.argv[2].split("/")) if len(sys.argv) > 2 and sys.argv[2] else None
    try:
        print(run(sys.argv[1], chosen, float(sys.argv[3]) if len(sys.argv) > 3 else math.inf).verdict)
    except IncompleteRunError as error:
        print(error)
