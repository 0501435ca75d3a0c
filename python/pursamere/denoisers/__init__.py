"""Denoisers: posterior means of an image given a noisy one."""

from pursamere.denoisers.gaussian_mixture import GaussianMixture
from pursamere.denoisers.generic import from_noise_prediction, from_score
from pursamere.denoisers.kernel_density import KernelDensity
from pursamere.denoisers.protocol import Denoiser, Prediction, prediction_of

__all__ = [
    "Denoiser",
    "GaussianMixture",
    "KernelDensity",
    "Prediction",
    "from_noise_prediction",
    "from_score",
    "prediction_of",
]
