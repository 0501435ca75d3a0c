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
        network: a wrapper of k-diffusion's (``layers.Denoiser``, ``external.OpenAIDenoiser`` or one called alike):
            ``network(x [N, C, H, W] in [-1, 1], sigma [N], **keywords) -> [N, C, H, W]``, the denoised image. Its
            attributes ``sigma_min`` and ``sigma_max``, numbers or tensors of one, bound the noise levels where it has
            them. Put it in evaluation mode.
        **keywords: passed in every call, such as ``class_cond``; the same for all images.

    Returns:
        An ``nn.Module``; its output has the dtype of ``y``, ``sigma_range`` is what it accepts.

    Raises:
        TypeError: ``network`` is a path or no ``nn.Module``.
        ValueError: ``sigma_min`` and ``sigma_max`` make no range; in a call, ``sigma`` is outside it, or ``y`` or the
            output has a wrong shape.
    """
    attributes: Any = check_network("network", network)
    return _FromKDiffusion(network, schedule_of(attributes), keywords)
