"""Models whose robustness is known exactly."""

import torch
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Several classes with linear logits; counts the images that it sees."""

    def __init__(self, classes: int = 5):
        super().__init__()
        weight = torch.randn(classes, 16, generator=generator(1))
        self.weight = nn.Parameter(weight - weight.mean(1, keepdim=True))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return (x.flatten(1) - 0.5) @ self.weight.to(x.dtype).T

    def is_robust(self, images: Tensor, labels: Tensor, eps: float, norm: str) -> Tensor:
        """Exactly, for images away from 0 and 1: no other class can be brought level within the ball."""
        gap = self.weight[labels][:, None] - self.weight[None]  # [B, classes, d]
        score = ((images.flatten(1) - 0.5)[:, None] * gap).sum(-1)
        reach = gap.abs().sum(-1) if norm == "linf" else gap.norm(dim=-1)
        robust = score > eps * reach
        robust[torch.arange(len(labels)), labels] = True
        return robust.all(1)


class TwoOfThree(Linear):
    """Two classes, and a third that never wins: here no loss can prefer a class that is not the nearest."""

    def __init__(self):
        super().__init__(3)
        self.weight.data[2] = 0

    def forward(self, x):
        return super().forward(x) - 100 * torch.tensor([0, 0, 1], dtype=x.dtype)

    def is_robust(self, images, labels, eps, norm):
        gap = self.weight[labels] - self.weight[1 - labels]
        reach = gap.abs().sum(-1) if norm == "linf" else gap.norm(dim=-1)
        return ((images.flatten(1) - 0.5) * gap).sum(-1) > eps * reach


def make_problem():
    """A linear model, images, and its own labels for them."""
    model = Linear()
    images = 0.5 + 0.3 * (torch.rand(120, 1, 4, 4, generator=generator(2)) - 0.5)
    return model, images, model(images).argmax(1).detach()


def dynamic_models():
    """A plain network, and a dynamic defense of the same answers: it differentiates inside, and is no purifier."""
    linear = Linear()

    class Loop(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                torch.autograd.grad(y.square().sum(), y)
            return linear(x)

    return linear, Loop()
