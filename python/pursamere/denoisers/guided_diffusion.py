"""Networks of guided-diffusion (Dhariwal and Nichol, 2021, arXiv 2105.05233) as denoisers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pursamere._validation import check_choice
from pursamere.denoisers._network import NetworkDenoiser, check_label, check_network, require_attributes
from pursamere.denoisers._timesteps import DiscreteSchedule, without_variance

_OUTPUTS = {"EPSILON": "epsilon", "START_X": "sample"}


class _FromGuidedDiffusion(NetworkDenoiser):
    def __init__(self, network: nn.Module, schedule: DiscreteSchedule, output: str, label: int | None) -> None:
        super().__init__(network, schedule, output)
        self.label = label

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        labels = {} if self.label is None else {"y": x.new_full((len(x),), self.label, dtype=torch.long)}
        return without_variance(self.network(x, times, **labels), x.shape[1])


def from_guided_diffusion(network: nn.Module, diffusion: Any, *, label: int | None = None) -> NetworkDenoiser:
    """Return the denoiser of a network and the diffusion that it was trained with.

    With ``s = 2 sigma`` and ``alpha = 1 / sqrt(1 + s^2)`` the network is given ``alpha (2 y - 1)`` and the timestep at
    which ``alphas_cumprod = alpha^2``, interpolated linearly in the log signal-to-noise ratio and not rounded.

    Args:
        network: ``network(x [N, C, H, W], timesteps [N], y=[N] for a conditional one) -> [N, C or 2 C, H, W]``, trained
            on images in [-1, 1]. The second C channels, the learned variance, are cut off. ``num_classes`` is the
            number of classes, None or absent for an unconditional network. Put it in evaluation mode.
        diffusion: a ``GaussianDiffusion`` or ``SpacedDiffusion``, of which ``alphas_cumprod`` [T],
            ``model_mean_type`` (EPSILON or START_X), ``rescale_timesteps`` and, in a spaced one, ``timestep_map`` [T]
            and ``original_num_steps`` are read. Leave timesteps unspaced: levels in between are interpolated.
        label: the one class of all images, in [0, num_classes), for a conditional network; the index of the null class
            if it was trained with one. One class, since every call holds several draws of an image.

    Returns:
        An ``nn.Module``; its output has the dtype of ``y``, ``sigma_range`` is what it accepts.

    Raises:
        TypeError: ``network`` is a path or no ``nn.Module``, ``diffusion`` lacks an attribute, or ``label`` is no int.
        ValueError: the network predicts something else, ``alphas_cumprod`` does not decrease, or ``label`` is no class
            of the network; in a call, ``sigma`` is outside the schedule's range, or ``y`` or the output has a wrong
            shape.
    """
    attributes: Any = check_network("network", network)
    require_attributes("diffusion", diffusion, "alphas_cumprod", "model_mean_type", "rescale_timesteps")
    mean_type = getattr(diffusion.model_mean_type, "name", diffusion.model_mean_type)
    check_choice("diffusion.model_mean_type", mean_type, _OUTPUTS)
    count = len(diffusion.alphas_cumprod)
    times = np.asarray(getattr(diffusion, "timestep_map", np.arange(count)), dtype=np.float64)
    if diffusion.rescale_timesteps:
        times = times * (1000.0 / getattr(diffusion, "original_num_steps", count))
    schedule = DiscreteSchedule("diffusion", diffusion.alphas_cumprod, times)
    classes = getattr(attributes, "num_classes", None) or 0
    return _FromGuidedDiffusion(network, schedule, _OUTPUTS[mean_type], check_label(label, classes, null=False))
