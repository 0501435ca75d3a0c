"""UNets of the diffusers library as denoisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pursamere._validation import check_choice
from pursamere.denoisers._network import NetworkDenoiser, check_label, check_network, require_attributes
from pursamere.denoisers._timesteps import DiscreteSchedule, without_variance

# A "learned" embedding knows integers alone; "fourier" and a centered input belong to variance-exploding networks.
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
    """Return the denoiser of a ``UNet2DModel`` that was trained with the noise of ``scheduler``.

    With ``s = 2 sigma`` and ``alpha = 1 / sqrt(1 + s^2)`` the network is given ``alpha (2 y - 1)`` and the timestep at
    which ``alphas_cumprod = alpha^2``, interpolated linearly in the log signal-to-noise ratio; it is not rounded.
    Neither ``clip_sample`` nor ``thresholding`` of the scheduler is applied: the posterior mean needs none, and a
    clipped one has no gradient.

    Args:
        unet: ``unet(x [N, C, H, W], timestep [N], class_labels=[N] or None, return_dict=False) -> (output,)``, trained
            on images in [-1, 1], with sinusoidal time embeddings. A learned variance, C channels more, is cut off. Put
            it in evaluation mode.
        scheduler: of any kind with ``alphas_cumprod`` [T] and ``config.prediction_type``, one of "epsilon",
            "v_prediction" and "sample": ``DDPMScheduler``, ``DDIMScheduler`` and others. It is read now and not kept.
        label: the one class of all images, in [0, num_class_embeds), for a class-conditional network; the index of the
            null class if it was trained with one. One class, since every call holds several draws of an image.

    Returns:
        An ``nn.Module``; its output has the dtype of ``y``, ``sigma_range`` is what it accepts.

    Raises:
        TypeError: ``unet`` is a path or no ``nn.Module``, ``scheduler`` has no ``alphas_cumprod`` or no ``config``, or
            ``label`` is no int.
        ValueError: the prediction type, the time embedding or the class embedding is not supported, ``alphas_cumprod``
            does not decrease, or ``label`` is no class of the network; in a call, ``sigma`` is outside the
            schedule's range, or ``y`` or the output has a wrong shape.
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
