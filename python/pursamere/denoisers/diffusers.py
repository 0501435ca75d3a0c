"""UNets of the diffusers library as denoisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pursamere._validation import check_choice
from pursamere.denoisers._network import NetworkDenoiser, check_label, check_network, require_attributes
from pursamere.denoisers._timesteps import DiscreteSchedule, without_variance

# "learned" embeddings support integers only; "fourier" and center_input_sample are for variance-exploding networks.
_SUPPORTED = {"time_embedding_type": "positional", "class_embed_type": None, "center_input_sample": False}


class _FromDiffusers(NetworkDenoiser):
    def __init__(self, unet: nn.Module, schedule: DiscreteSchedule, output: str, label: int | None) -> None:
        super().__init__(unet, schedule, output)
        self.label = label

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        labels = None if self.label is None else x.new_full((len(x),), self.label, dtype=torch.long)
        (output,) = self.network(x, times, class_labels=labels, return_dict=False)
        return without_variance(output, x.shape[1])


def from_diffusers(unet: nn.Module, scheduler: Any, *, label: int | None = None) -> NetworkDenoiser:
    """Return a denoiser for a ``UNet2DModel`` that was trained with the noise of ``scheduler``.

    With ``s = 2 sigma`` and ``alpha = 1 / sqrt(1 + s^2)``, the network's input is ``alpha (2 y - 1)`` at the timestep
    where ``alphas_cumprod = alpha^2``. The timestep is interpolated linearly in the log signal-to-noise ratio and not
    rounded. The scheduler's ``clip_sample`` and ``thresholding`` are ignored: the posterior mean does not need them,
    and clipped pixels have no gradient.

    Args:
        unet: ``unet(x [N, C, H, W], timestep [N], class_labels=[N] or None, return_dict=False) -> (output,)``, trained
            on images in [-1, 1], with sinusoidal time embeddings. A learned variance (C more channels) is dropped. It
            must be in evaluation mode.
        scheduler: any scheduler with ``alphas_cumprod`` [T] and ``config.prediction_type`` ("epsilon", "v_prediction"
            or "sample"), such as ``DDPMScheduler`` or ``DDIMScheduler``. Not referenced after this call.
        label: for a class-conditional network, the class of all images, in [0, num_class_embeds); the index of the
            null class if the network was trained with one.

    Returns:
        An ``nn.Module`` with the attribute ``sigma_range``. Its output has the dtype of ``y``.

    Raises:
        TypeError: ``unet`` is not an ``nn.Module``, ``scheduler`` lacks ``alphas_cumprod`` or ``config``, or ``label``
            is not an int.
        ValueError: the prediction type, the time embedding or the class embedding is not supported, ``alphas_cumprod``
            is not decreasing, or ``label`` is out of range. Calling the denoiser raises it if ``sigma`` is outside
            ``sigma_range``, or ``y`` or the output has the wrong shape.
    """
    check_network("unet", unet)
    require_attributes("unet", unet, "config")
    require_attributes("scheduler", scheduler, "config", "alphas_cumprod")
    output = getattr(scheduler.config, "prediction_type", None)
    output = check_choice("scheduler.config.prediction_type", output, ("epsilon", "v_prediction", "sample"))
    config: Any = unet.config
    for option, supported in _SUPPORTED.items():
        if (value := getattr(config, option, supported)) != supported:
            raise ValueError(f"unet.config.{option} must be {supported!r}, got {value!r}")
    label = check_label(label, getattr(config, "num_class_embeds", None) or 0, null=False)
    return _FromDiffusers(unet, DiscreteSchedule("scheduler", scheduler.alphas_cumprod), output, label)
