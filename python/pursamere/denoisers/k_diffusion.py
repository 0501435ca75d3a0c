"""Networks wrapped as in k-diffusion (github.com/crowsonkb/k-diffusion) as denoisers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursamere.denoisers._network import NetworkDenoiser, check_network
from pursamere.denoisers.edm import EDMSchedule, schedule_of


class _FromKDiffusion(NetworkDenoiser):
    def __init__(self, network: nn.Module, schedule: EDMSchedule, keywords: dict[str, Any]) -> None:
        super().__init__(network, schedule, "sample")
        self.keywords = keywords

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        return self.network(x, times, **self.keywords)


def from_k_diffusion(network: nn.Module, **keywords: Any) -> NetworkDenoiser:
    """Return the denoiser ``D(y, sigma) = (network(2 y - 1, 2 sigma, **keywords) + 1) / 2``.

    Args:
        network: a k-diffusion wrapper such as ``layers.Denoiser`` or ``external.OpenAIDenoiser``:
            ``network(x [N, C, H, W] in [-1, 1], sigma [N], **keywords) -> [N, C, H, W]``, the denoised image. The
            optional attributes ``sigma_min`` and ``sigma_max``, numbers or one-element tensors, bound the noise
            levels. It must be in evaluation mode.
        **keywords: passed to every call, such as ``class_cond``; the same for all images.

    Returns:
        An ``nn.Module`` with the attribute ``sigma_range``. Its output has the dtype of ``y``.

    Raises:
        TypeError: ``network`` is not an ``nn.Module``.
        ValueError: ``sigma_min`` is not less than ``sigma_max``. Calling the denoiser raises it if ``sigma`` is outside
            ``sigma_range``, or ``y`` or the output has the wrong shape.
    """
    attributes: Any = check_network("network", network)
    return _FromKDiffusion(network, schedule_of(attributes), keywords)
