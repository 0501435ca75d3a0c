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
    """Return a denoiser for a network and the diffusion that it was trained with.

    With ``s = 2 sigma`` and ``alpha = 1 / sqrt(1 + s^2)``, the network's input is ``alpha (2 y - 1)`` at the timestep
    where ``alphas_cumprod = alpha^2``. The timestep is interpolated linearly in the log signal-to-noise ratio and not
    rounded.

    Args:
        network: ``network(x [N, C, H, W], timesteps [N], y=[N] for a conditional one) -> [N, C or 2 C, H, W]``, trained
            on images in [-1, 1]. The second C channels, the learned variance, are dropped. ``num_classes`` is the
            number of classes, None or absent for an unconditional network. It must be in evaluation mode.
        diffusion: a ``GaussianDiffusion`` or ``SpacedDiffusion``. Reads ``alphas_cumprod`` [T], ``model_mean_type``
            (EPSILON or START_X), ``rescale_timesteps`` and, if spaced, ``timestep_map`` [T] and
            ``original_num_steps``. Prefer unspaced timesteps: levels in between are interpolated.
        label: for a conditional network, the class of all images, in [0, num_classes); the index of the null class if
            the network was trained with one.

    Returns:
        An ``nn.Module`` with the attribute ``sigma_range``. Its output has the dtype of ``y``.

    Raises:
        TypeError: ``network`` is not an ``nn.Module``, ``diffusion`` lacks an attribute, or ``label`` is not an int.
        ValueError: the prediction type is not supported, ``alphas_cumprod`` is not decreasing, or ``label`` is out of
            range. Calling the denoiser raises it if ``sigma`` is outside ``sigma_range``, or ``y`` or the output has
            the wrong shape.
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
