"""Training a denoiser on the expected reconstruction error (M1), averaged over data and noise levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pursamere.datasets import Dataset
from pursamere.datasets.loading import representatives
from pursamere.denoisers import KernelDensity
from pursamere.models.edm_unet import EDMUNet

from .configuration import DenoiserConfiguration
from .initial import seeded
from .order import generator

VALIDATION_SIGMAS = (0.1, 0.2, 0.4, 0.8)
VALIDATION_IMAGES = 256
BANDWIDTHS = (0.05, 0.1, 0.15, 0.2)  # of the kernel density baseline
_BATCH = 128
_VALIDATION_STREAM = 2


def build_denoiser(settings: DenoiserConfiguration, image_shape: tuple[int, ...]) -> EDMUNet:
    """Build the network with weights drawn from the seed."""
    with seeded(settings.seed):
        return EDMUNet(
            image_shape,
            settings.channels,
            layers=settings.layers,
            patch=settings.patch,
            attention=settings.attention,
            groups=settings.groups,
            sigma_data=settings.sigma_data,
            sigma_range=(settings.sigma_min, settings.sigma_max),
        )


class DenoiserTask:
    """``min E_sigma lambda(sigma) E_x R(x; sigma)``, with EDM's weight lambda and one draw per image and step."""

    def __init__(
        self, settings: DenoiserConfiguration, train: Dataset, validation: Dataset, device: torch.device
    ) -> None:
        self.settings = settings
        self.images = train.images.to(device)
        shown = representatives(validation, settings.dataset, min(len(validation), VALIDATION_IMAGES))
        self.validation = shown.images.to(device)
        self.size = len(self.images)

    def losses(self, network: Any, rows: Tensor, mine: slice, generator: torch.Generator) -> Tensor:
        """Return the weighted mean squared error per image."""
        x = self.images[rows.to(self.images.device)]
        if self.settings.flip:
            mirrored = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        uniform = torch.rand(len(x), generator=generator, device=x.device)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        # Stratified noise levels reduce the variance of the loss.
        sigma = noise_levels((torch.arange(len(x), device=x.device) + uniform) / len(x), self.settings)
        x, sigma, noise = x[mine], sigma[mine], noise[mine]
        error = (network(x + sigma.view(-1, 1, 1, 1) * noise, sigma) - x).square().mean(dim=(1, 2, 3))
        return network.loss_weight(sigma) * error

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return the mean squared error per pixel at every validation noise level."""
        return {f"error at {sigma:g}": self.error(network, sigma) for sigma in VALIDATION_SIGMAS}

    def error(self, denoiser: nn.Module, sigma: float) -> float:
        """Return a denoiser's mean squared error per pixel on the validation images, with fixed noise."""
        x = self.validation
        noise = torch.randn(x.shape, generator=generator(0, _VALIDATION_STREAM, 0), device="cpu").to(x.device)
        batches = zip(x.split(_BATCH), (x + sigma * noise).split(_BATCH), strict=True)
        return float(sum((denoiser(y, sigma) - clean).square().sum() for clean, y in batches)) / x.numel()

    def table(self, network: nn.Module) -> list[dict[str, float]]:
        """Return the errors of the network, the identity and the best kernel density, per noise level.

        The bandwidth of the kernel density is tuned per noise level on the same images, in its favor.
        """
        rows = []
        for sigma in VALIDATION_SIGMAS:
            densities = {h: self.error(KernelDensity(self.images, h), sigma) for h in BANDWIDTHS}
            best = min(densities, key=densities.__getitem__)
            rows.append(
                {
                    "sigma": sigma,
                    "network": self.error(network, sigma),
                    "identity": self.error(_Identity(), sigma),
                    "kernel density": densities[best],
                    "bandwidth": best,
                }
            )
        return rows


def noise_levels(uniform: Tensor, settings: DenoiserConfiguration) -> Tensor:
    """Map uniform numbers in [0, 1] to noise levels in pixel units by the inverse distribution function."""
    low, high = math.log(settings.sigma_min), math.log(settings.sigma_max)
    if settings.sigma_distribution == "log-uniform":
        return (low + (high - low) * uniform).exp()
    middle, spread = math.log(settings.sigma_median), settings.sigma_spread
    below, above = (0.5 * (1 + math.erf((edge - middle) / (spread * math.sqrt(2)))) for edge in (low, high))
    logarithm = middle + spread * torch.special.ndtri((below + (above - below) * uniform).double())
    return logarithm.clamp(low, high).exp().to(uniform.dtype)


class _Identity(nn.Module):
    def forward(self, y: Tensor, sigma: float) -> Tensor:
        return y
