"""The networks for scikit-learn's 8x8 digits, which are made in seconds instead of shipped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from pursamere._threads import cpu_threads
from pursamere.datasets import Dataset, load
from pursamere.denoisers import KernelDensity

__all__ = ["BANDWIDTH", "EPOCHS", "build_classifier", "make_denoiser", "train_classifier"]

BANDWIDTH = 0.25
EPOCHS = 20
_BATCH = 64


def make_denoiser(bandwidth: float = BANDWIDTH, device: torch.device | str = "cpu") -> KernelDensity:
    """Return the kernel density of the digits' training split."""
    return KernelDensity(load("digits", "train").images.to(device), bandwidth)


def build_classifier(generator: torch.Generator) -> nn.Sequential:
    """Return an untrained classifier, images [B, 1, 8, 8] to logits [B, 10]; only ``generator`` is drawn from."""
    # The layers' own initialization would draw from PyTorch's global generator.
    layers: list[nn.Module] = [
        skip_init(nn.Conv2d, 1, 32, 3, padding=1),
        nn.ReLU(),
        skip_init(nn.Conv2d, 32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        skip_init(nn.Conv2d, 32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        skip_init(nn.Linear, 64 * 4 * 4, 64),
        nn.ReLU(),
        skip_init(nn.Linear, 64, 10),
    ]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    return network


def train_classifier(
    data: Dataset | None = None,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    progress: Callable[[int], None] = lambda _: None,
) -> nn.Sequential:
    """Train a classifier on the CPU, without augmentation.

    The weights depend only on the arguments: global random state is neither read nor changed, and training uses one
    thread.

    Args:
        data: the images to train on, by default the digits' training split.
        seed: of the initial weights and the order of the batches.
        epochs: passes over the data.
        progress: called with 1 after every epoch.

    Returns:
        The classifier in evaluation mode, with frozen parameters.
    """
    if data is None:
        data = load("digits", "train")
    generator = torch.Generator("cpu").manual_seed(seed)
    network = build_classifier(generator)
    count = len(data.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    batches = (count + _BATCH - 1) // _BATCH
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs * batches))
    with cpu_threads(1), torch.enable_grad():  # the number of threads would change the last bits
        for _ in range(epochs):
            for rows in torch.randperm(count, generator=generator, device="cpu").split(_BATCH):
                loss = functional.cross_entropy(network(data.images[rows]), data.labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
            progress(1)
    return network.eval().requires_grad_(False)
