"""Networks of EDM (Karras et al., 2022, arXiv 2206.00364) as denoisers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursamere._validation import check_integer, check_real
from pursamere.denoisers._network import Level, NetworkDenoiser, check_label, check_network, check_schedule


class EDMSchedule:
    """For networks that scale their input themselves and take the noise level as their time."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, s: float) -> Level:
        """Return the level of noise of standard deviation ``s``."""
        return Level(1.0, s)


def schedule_of(network: Any) -> EDMSchedule:
    """The schedule between the network's ``sigma_min`` and ``sigma_max``, numbers or one-element tensors."""
    bounds = []
    for name, default in (("sigma_min", 0.0), ("sigma_max", float("inf"))):
        bound = getattr(network, name, default)
        if isinstance(bound, Tensor) and bound.numel() == 1:
            bound = bound.item()
        bounds.append(check_real(f"network.{name}", bound))
    schedule = EDMSchedule(*bounds)
    check_schedule("network", schedule)
    return schedule


class _FromEDM(NetworkDenoiser):
    def __init__(self, network: nn.Module, schedule: EDMSchedule, label: int | None, classes: int) -> None:
        super().__init__(network, schedule, "sample")
        self.label, self.classes = label, classes

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        if self.label is None:  # not passing None: compatible networks may take no labels, or something else there
            return self.network(x, times)
        class_labels = times.new_zeros(len(x), self.classes)
        class_labels[:, self.label] = 1.0
        return self.network(x, times, class_labels)


def from_edm(network: nn.Module, *, label: int | None = None) -> NetworkDenoiser:
    """Return the denoiser ``D(y, sigma) = (network(2 y - 1, 2 sigma, class_labels) + 1) / 2``.

    ``sigma`` is passed unrounded; networks that need rounded noise levels (``round_sigma``) round internally.

    Args:
        network: a preconditioned network such as ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` or ``iDDPMPrecond``:
            ``network(x [N, C, H, W] in [-1, 1], sigma [N], class_labels) -> [N, C, H, W]``, the denoised image.
            Called as ``network(x, sigma)`` if ``label`` is None. The optional attributes ``sigma_min`` and
            ``sigma_max`` bound the noise levels, and ``label_dim`` is the number of classes. It must be in evaluation
            mode. Pickled checkpoints hold this module under ``"ema"``; paths are refused, since unpickling executes
            code.
        label: the class of all images, in [0, label_dim), passed as a one-hot row. None for the null label or an
            unconditional network.

    Returns:
        An ``nn.Module`` with the attribute ``sigma_range``. Its output has the dtype of ``y``.

    Raises:
        TypeError: ``network`` is not an ``nn.Module``, or ``label`` is not an int.
        ValueError: ``label`` is out of range, or ``sigma_min`` is not less than ``sigma_max``. Calling the denoiser
            raises it if ``sigma`` is outside ``sigma_range``, or ``y`` or the output has the wrong shape.
    """
    attributes: Any = check_network("network", network)
    schedule = schedule_of(attributes)
    classes = check_integer("network.label_dim", getattr(attributes, "label_dim", 0), low=0)
    return _FromEDM(network, schedule, check_label(label, classes, null=True), classes)
