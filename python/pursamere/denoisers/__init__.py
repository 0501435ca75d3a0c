"""Denoisers: closed forms, and adapters for networks of diffusion models."""

from pursamere.denoisers.diffusers import from_diffusers
from pursamere.denoisers.edm import from_edm
from pursamere.denoisers.gaussian_mixture import GaussianMixture
from pursamere.denoisers.generic import from_noise_prediction, from_score
from pursamere.denoisers.guided_diffusion import from_guided_diffusion
from pursamere.denoisers.k_diffusion import from_k_diffusion
from pursamere.denoisers.kernel_density import KernelDensity
from pursamere.denoisers.protocol import Denoiser, NetworkCall, Prediction, prediction_of
from pursamere.denoisers.score_sde import from_score_sde

__all__ = [
    "Denoiser",
    "GaussianMixture",
    "KernelDensity",
    "NetworkCall",
    "Prediction",
    "from_diffusers",
    "from_edm",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_noise_prediction",
    "from_score",
    "from_score_sde",
    "prediction_of",
]
