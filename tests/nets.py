"""Small convolutional denoisers and classifiers with fixed weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fixed_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the parameters from a generator of their own, and switch to evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan_in**0.5))
    return module.eval().requires_grad_(False)


class ConvDenoiser(nn.Module):
    """Residual three-layer network; ``sigma`` enters as a scale."""

    def __init__(self, channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        return y + sigma * self.net(y - 0.5)


class AttentionDenoiser(nn.Module):
    """Pixels attend to one another by PyTorch's fused attention, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(1, 3 * 8), nn.Linear(8, 1)

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        tokens = y.flatten(1).unsqueeze(-1)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return y + 0.3 * self.out(mixed).squeeze(-1).view_as(y)


def conv_denoiser(channels: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
    return fixed_weights(ConvDenoiser(channels)).to(dtype)


def conv_classifier(channels: int = 1, dtype: torch.dtype = torch.float32, classes: int = 10) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)
    )
    return fixed_weights(net, 1).to(dtype)
