"""A small evaluation for processes of their own: ``python evaluation_case.py FOLDER [SHARD] [KILL_AFTER]``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

import torch

import pursamere as ps
from pursamere._evaluate import evaluate
from pursamere.evaluation import Attack, IncompleteRunError, Protocol
from pursamere.evaluation.protocol import LONG, SHORT

EPS = (0.05, 0.1)
PROTOCOL = Protocol(
    "tiny",
    (
        Attack("clean", "none"),
        Attack("random-search", "random_search", steps=3),
        Attack(f"{LONG}-bpda", "pgd", gradient="identity", steps=3),
        Attack(SHORT, "pgd", steps=2),
        Attack(LONG, "pgd", steps=5),
        Attack("apgd-t", "apgd", loss="targeted_dlr", steps=2, restarts=2, survivors_only=True),
        Attack("square", "square", steps=4, survivors_only=True),
        Attack("first", "pgd", steps=2, samples=5),
        Attack("sweep", "pgd", steps=2, samples=4, sweep=True),
    ),
    "nearly everything",
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
        classifier[1].weight.copy_(10 * (means.flatten(1) - 0.5))
        classifier[1].bias.copy_(-5 * (means.flatten(1) - 0.5).square().sum(1))
    return ps.PurifiedClassifier(purifier, classifier.eval()), images, labels


def run(folder, shard=None, kill_after=None, **options):
    @contextmanager
    def bar(total, description):
        done = 0

        def advance(amount):
            nonlocal done
            done += amount
            if kill_after is not None and done >= kill_after * total:
                os.kill(os.getpid(), signal.SIGKILL)

        yield advance
        assert done == total or kill_after is None

    model, images, labels = model_and_data()
    options = {"eps": EPS, "preset": PROTOCOL, "chunk": 4, "threads": 1, **options}
    return evaluate(model, images, labels, folder=folder, shard=shard, bar=bar, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = tuple(int(n) for n in sys.argv[2].split("/")) if len(sys.argv) > 2 and sys.argv[2] else None
    try:
        print(run(sys.argv[1], chosen, float(sys.argv[3]) if len(sys.argv) > 3 else None).verdict)
    except IncompleteRunError as error:
        print(error)
