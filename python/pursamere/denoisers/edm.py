"""Networks of EDM (Karras et al., 2022, arXiv 2206.00364) as denoisers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursamere._validation import check_integer, check_real
from pursamere.denoisers._network import Level, NetworkDenoiser, check_label, check_network, check_schedule


class EDMSchedule:
    """The network scales its input by itself and is told the noise level."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, s: float) -> Level:
        """Return the level of noise of standard deviation ``s``."""
        return Level(1.0, s)


def schedule_of(network: Any) -> EDMSchedule:
    """The noise levels between the network's ``sigma_min`` and ``sigma_max``, numbers or tensors of one, or all."""
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
        if self.label is None:  # not None by position: networks called alike may take other arguments there, or none
            return self.network(x, times)
        class_labels = times.new_zeros(len(x), self.classes)
        class_labels[:, self.label] = 1.0
        return self.network(x, times, class_labels)


def from_edm(network: nn.Module, *, label: int | None = None) -> NetworkDenoiser:
    """Return the denoiser ``D(y, sigma) = (network(2 y - 1, 2 sigma, class_labels) + 1) / 2``.

    Networks that round noise levels (``round_sigma``) do so inside where they must; ``y`` has the noise that it has, so
    ``sigma`` is passed as it is.

    Args:
        network: a preconditioned network (``EDMPrecond``, ``VPPrecond``, ``VEPrecond``, ``iDDPMPrecond`` or one called
            alike): ``network(x [N, C, H, W] in [-1, 1], sigma [N], class_labels) -> [N, C, H, W]``, the denoised image;
            without a ``label`` it is called as ``network(x, sigma)``.
            Its attributes ``sigma_min`` and ``sigma_max``, where it has them, bound the noise levels; ``label_dim``
            is the number of classes. Put it in evaluation mode. A pickled checkpoint holds the module to pass under
            ``"ema"``; the file itself is refused, since unpickling runs code.
        label: the one class of all images, in [0, label_dim), passed as a one-hot row; None to pass none, for the null
            label or an unconditional network. One class, since every call holds several draws of an image.

    Returns:
        An ``nn.Module``; its output has the dtype of ``y``, ``sigma_range`` is what it accepts.

    Raises:
        TypeError: ``network`` is a path or no ``nn.Module``, or ``label`` no int.
        ValueError: ``label`` is no class of the network, or ``sigma_min`` and ``sigma_max`` make no range; in a call,
            ``sigma`` is outside it, or ``y`` or the output has a wrong shape.
    """
    attributes: Any = check_network("network", network)
    schedule = schedule_of(attributes)
    classes = check_integer("network.label_dim", getattr(attributes, "label_dim", 0), low=0)
    return _FromEDM(network, schedule, check_label(label, classes, null=True), classes)
