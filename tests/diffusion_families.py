"""Tiny networks with random weights, called as the public code of each family of diffusion models calls its own.

Networks, schedules and equations are written from the papers' formulas, not from the adapters.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace

import numpy as np
import torch
from nets import fixed_weights
from torch import Tensor, nn
from torch.nn.functional import silu


class TinyUNet(nn.Module):
    """A convolutional network that knows a time [N] and, perhaps, an embedding of a class [N, width]."""

    def __init__(self, channels: int, outputs: int, width: int = 8) -> None:
        super().__init__()
        self.time = nn.Linear(3, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, embedding: Tensor | None = None) -> Tensor:
        features = torch.stack([time.sin(), time.cos(), time / 1000], 1).to(x.dtype)
        shift = self.time(features)
        if embedding is not None:
            shift = shift + embedding
        return self.last(silu(self.norm(self.first(x)) + shift[:, :, None, None]))


class EDMNetwork(nn.Module):
    """EDM preconditioning (Karras et al., 2022, table 1) with ``sigma_data = 0.5``; no class is a row of zeros."""

    def __init__(self, channels: int = 1, label_dim: int = 0) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.sigma_min, self.sigma_max = 0.002, 80.0
        self.model = TinyUNet(channels, channels)
        self.label = nn.Linear(label_dim, 8, bias=False) if label_dim else None

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        sigma = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        embedding = None
        if self.label is not None:
            rows = torch.zeros([1, self.label_dim]) if class_labels is None else class_labels
            embedding = self.label(rows.to(x.dtype).reshape(-1, self.label_dim))
        total = sigma**2 + 0.5**2
        output = self.model(x / total.sqrt(), sigma.log().flatten() / 4, embedding)
        return 0.5**2 / total * x + 0.5 * sigma / total.sqrt() * output

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)


class GuidedNetwork(nn.Module):
    """Takes ``y`` if and only if it has classes; ``learn_sigma`` doubles the channels of the output."""

    def __init__(self, channels: int = 1, num_classes: int | None = None, learn_sigma: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.model = TinyUNet(channels, channels * (2 if learn_sigma else 1))
        self.label_emb = nn.Embedding(num_classes, 8) if num_classes else None

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        assert (y is not None) == (self.num_classes is not None)
        embedding = None if y is None else self.label_emb(y)
        return self.model(x, timesteps / 100, embedding)


class MeanType(enum.Enum):
    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


def guided_diffusion(
    steps: int = 1000, mean_type: MeanType = MeanType.EPSILON, rescale: bool = True, kept: np.ndarray | None = None
) -> SimpleNamespace:
    """The linear schedule of Ho et al. (2020) for any number of steps; ``kept`` for a spaced one."""
    betas = np.linspace(0.1 / steps, 20 / steps, steps)
    diffusion = SimpleNamespace(
        alphas_cumprod=np.cumprod(1 - betas), model_mean_type=mean_type, rescale_timesteps=rescale
    )
    if kept is not None:
        diffusion.alphas_cumprod = diffusion.alphas_cumprod[kept]
        diffusion.timestep_map, diffusion.original_num_steps = kept.tolist(), steps
    return diffusion


class VPSDE:
    T = 1
    beta_min, beta_max = 0.1, 20.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """What image and noise are multiplied by at the times t."""
        alpha = torch.exp(-0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)
        return alpha, torch.sqrt(1 - alpha**2)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, std = self.coefficients(t)
        return alpha[:, None, None, None] * x, std


class SubVPSDE(VPSDE):
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, std = super().coefficients(t)
        return alpha, std**2


class VESDE:
    T = 1
    sigma_min, sigma_max = 0.01, 50.0

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.sigma_min * (self.sigma_max / self.sigma_min) ** t


def get_score_fn(sde: VPSDE | VESDE, model: nn.Module):
    """The score of a continuously trained network: a function, as in the public code, and no module."""

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        std = sde.marginal_prob(torch.zeros_like(x), t)[1]
        if isinstance(sde, VESDE):
            return model(x, std)
        return -model(x, t * 999) / std[:, None, None, None]

    return score_fn


class ScaledBySigma(nn.Module):
    """A variance-exploding network: it is told the noise level, and its output is divided by it."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.model = TinyUNet(channels, channels)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.model(x, labels.log()) / labels[:, None, None, None]


def diffusers_unet(channels: int = 1, **options):
    """A ``UNet2DModel`` with attention; needs diffusers."""
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=options.pop("out_channels", channels),
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )
    return fixed_weights(unet)


class GaussianPrior:
    """The exact answers for images whose pixels are independent N(mean, std^2), in the units that they are given in."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def centered(self) -> GaussianPrior:
        """The same images in [-1, 1]."""
        return GaussianPrior(2 * self.mean - 1, 2 * self.std)

    def denoised(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """The mean of x0 given ``x = alpha x0 + sigma eps``."""
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def epsilon(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        return sigma / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)

    def v_prediction(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        return alpha * self.epsilon(x, alpha, sigma) - sigma * self.denoised(x, alpha, sigma)

    def score(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        return -(x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


def at_timesteps(alphas_cumprod: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma_t at fractional ``times``, the log of their ratio being linear between timesteps."""
    acp = torch.as_tensor(alphas_cumprod).double()
    log_ratio = 0.5 * torch.log(acp / (1 - acp))
    below = times.double().floor().long().clamp(max=len(acp) - 2)
    part = times.double() - below
    ratio = torch.exp((1 - part) * log_ratio[below] + part * log_ratio[below + 1])[:, None, None, None]
    sigma_t = 1 / torch.sqrt(1 + ratio**2)
    return ratio * sigma_t, sigma_t
