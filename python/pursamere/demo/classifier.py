"""A small convolutional classifier for the 8x8 digits, trained in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from pursamere.datasets import Dataset


def build_classifier(generator: torch.Generator) -> nn.Sequential:
    """An untrained network, images [B, 1, 8, 8] -> logits [B, 10], with weights drawn from ``generator`` only.

    The layers' own initialization draws from PyTorch's global generator, so it is skipped.
    """
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
    data: Dataset,
    *,
    seed: int,
    epochs: int = 20,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda _: None,
) -> nn.Sequential:
    """Train on ``data`` without augmentation; the network is returned in eval mode with frozen weights.

    ``progress(1)`` is called after every epoch.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    network = build_classifier(generator)
    count = len(data.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    batches = (count + batch_size - 1) // batch_size
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs * batches))
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(count, generator=generator, device="cpu").split(batch_size):
                loss = functional.cross_entropy(network(data.images[rows]), data.labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
            progress(1)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The predicted classes [B] of images [B, C, H, W]."""
    return model(images).argmax(dim=1)
