"""Conversion between pixel space and the units of diffusion networks, shared by the adapters.

A denoiser computes the posterior mean at ``y = x + sigma * xi`` in pixel space. For a network trained on images in
[-1, 1], this is the mean at ``z = 2 y - 1`` with noise of standard deviation ``s = 2 sigma``; for one trained on images
in [0, 1], ``z = y`` and ``s = sigma``. The input of the network is ``alpha * z``, with the time at which its schedule
scales the image by ``alpha`` and the noise by ``sigma_t = alpha * s``. This matches its training data: an image times
``alpha`` plus noise of standard deviation ``sigma_t``.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pursamere._validation import check_integer, check_positive, check_tensor
from pursamere.denoisers.protocol import NetworkCall
from pursamere.determinism.network import is_more_than_its_methods, parameters_of

OUTPUTS = {
    # x0 and eps: expected image and noise; score: gradient of the log density of alpha * z
    "sample": lambda alpha, s: (0.0, 1.0),  # x0
    "epsilon": lambda alpha, s: (1.0, -s),  # (alpha z - sigma_t eps) / alpha
    "v_prediction": lambda alpha, s: (alpha**2, -(alpha * s)),  # v = alpha eps - sigma_t x0
    "score": lambda alpha, s: (1.0, alpha * s**2),  # Tweedie: (alpha z + sigma_t^2 score) / alpha
}
"""The factors (a, b) with which ``a * z + b * output`` is the denoised image in the network's units. "v_prediction"
(Salimans and Ho, 2022, arXiv 2202.00512) assumes ``alpha^2 + sigma_t^2 = 1``."""


class Level(NamedTuple):
    """The signal coefficient ``alpha`` of a noise level, and the network's time input."""

    alpha: float
    time: float


class Schedule(Protocol):
    """Maps noise levels ``s`` in [sigma_min, sigma_max], in the network's units, to signal coefficient and time."""

    sigma_min: float
    sigma_max: float

    def __call__(self, s: float) -> Level:
        """Return the level at which the noise is ``s`` times the signal."""
        ...


class NetworkDenoiser(nn.Module):
    """Base class of adapters that turn a diffusion network into a denoiser. Subclasses implement the call.

    Every adapter predicts the denoised image, whatever its network predicts, so that each family's conventions stay in
    one place. The network runs in the dtype of its first parameter. Conversions run in float32 or float64, and the
    result has the dtype of ``y``.

    Args:
        network: the network, registered if it is an ``nn.Module``.
        schedule: the network's noise levels.
        output: what the network predicts, a key of ``OUTPUTS``.
        centered: whether the network was trained on images in [-1, 1] rather than [0, 1].
    """

    def __init__(self, network: Any, schedule: Schedule, output: str, *, centered: bool = True) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.output = output
        self.centered = centered

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and largest supported ``sigma``, in pixel units."""
        scale = 2.0 if self.centered else 1.0
        return self.schedule.sigma_min / scale, self.schedule.sigma_max / scale

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        """Return the denoised images.

        Args:
            y: noisy images [N, C, H, W] in pixel space, floating point.
            sigma: standard deviation of the noise in pixel units, within ``sigma_range``.

        Returns:
            Tensor [N, C, H, W] in the dtype of ``y``.

        Raises:
            TypeError: ``y`` or the network's output is not a floating-point tensor, or ``sigma`` is not a real number.
            ValueError: ``y`` does not have rank 4, ``sigma`` is outside ``sigma_range``, or the output has the wrong
                shape.
        """
        check_tensor("y", y, rank=4)
        s, (alpha, time) = self._level(sigma)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        z = 2.0 * wide - 1.0 if self.centered else wide
        output = self.predict_raw((alpha * z).to(self._network_dtype(z.dtype)), time).to(z.dtype)
        a, b = OUTPUTS[self.output](alpha, s)
        denoised = output if b == 1.0 else b * output
        if a != 0.0:
            denoised = (z if a == 1.0 else a * z) + denoised
        return (0.5 * denoised + 0.5 if self.centered else denoised).to(y.dtype)

    def network_call(self, sigma: float, dtype: torch.dtype) -> NetworkCall | None:
        """Return the denoiser at one noise level as its network between two affine maps.

        Args:
            sigma: standard deviation of the noise in pixel units, within ``sigma_range``.
            dtype: dtype of the images.

        Returns:
            ``None`` if the network's dtype does not go with that of the images, or if calling the denoiser does more
            than :meth:`forward` above: with hooks, compiled, or overridden.

        Raises:
            TypeError: ``sigma`` is not a real number.
            ValueError: ``sigma`` is outside ``sigma_range``.
        """
        if is_more_than_its_methods(self) or type(self).forward is not NetworkDenoiser.forward:
            return None
        s, (alpha, time) = self._level(sigma)
        network_dtype = self._network_dtype(dtype)
        if dtype not in (torch.float32, torch.float64) or (
            network_dtype != dtype and (dtype == torch.float64 or network_dtype == torch.float64)
        ):
            return None
        a, b = OUTPUTS[self.output](alpha, s)
        # y = c z + offset, hence D = a y + c b output + (1 - a) offset
        c, offset = (0.5, 0.5) if self.centered else (1.0, 0.0)
        maps = {"input_scale": alpha / c, "input_shift": -alpha * offset / c, "shift": (1.0 - a) * offset}
        if a == 0.0:
            return NetworkCall("denoised", self.predict_raw, time, network_dtype, scale=c * b, **maps)
        return NetworkCall("noise", self.predict_raw, time, network_dtype, scale=-c * b / (a * sigma), gain=a, **maps)

    def predict_raw(self, x: Tensor, time: float) -> Tensor:
        """Return the network's output for inputs ``x`` [N, C, H, W], in their dtype or at least float32."""
        # Half precision is too coarse for times; networks of every family accept float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        output = self.call_network(x, x.new_full((len(x),), time, dtype=wide))
        check_tensor("the network's output", output)
        if output.shape != x.shape:
            raise ValueError(
                f"the network's output must have the shape of y, {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        return output if output.dtype == x.dtype else output.to(wide)

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        """Return the network's output for inputs ``x`` [N, C, H, W] at ``times`` [N], which are all equal."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the conventions for ``repr``."""
        low, high = self.sigma_range
        return f"output={self.output!r}, centered={self.centered}, sigma_range=({low:.4g}, {high:.4g})"

    def _level(self, sigma: float) -> tuple[float, Level]:
        """Return the noise level in the network's units, and what its schedule makes of it."""
        sigma = check_positive("sigma", sigma)
        low, high = self.sigma_range
        if not low <= sigma <= high:
            raise ValueError(
                f"sigma must be in the range of the network, [{low:.6g}, {high:.6g}] in pixel units, got {sigma:.6g}"
            )
        s = 2.0 * sigma if self.centered else sigma
        return s, self.schedule(s)

    def _network_dtype(self, otherwise: torch.dtype) -> torch.dtype:
        return next((p.dtype for p in parameters_of(self) if p.is_floating_point()), otherwise)


def refuse_path(name: str, value: Any) -> None:
    """Raise a ``TypeError`` for a path, which would have to be unpickled."""
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(
            f"{name} must be the loaded object, got the path {os.fspath(value)!r}: unpickling a checkpoint can execute "
            "code, so pursamere does not read pickles; if you trust the source, load it yourself and pass the object"
        )


def require_attributes(name: str, value: Any, *attributes: str) -> None:
    """Raise a ``TypeError`` for a path, or for an object that lacks an attribute."""
    refuse_path(name, value)
    for attribute in attributes:
        if not hasattr(value, attribute):
            raise TypeError(f"{name} must have the attribute {attribute}, got {type(value).__name__}")


def check_network(name: str, value: Any) -> nn.Module:
    """Return ``value`` if it is a module."""
    refuse_path(name, value)
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")
    return value


def check_label(label: Any, classes: int, *, null: bool) -> int | None:
    """Return ``label`` if it is valid for a network with ``classes`` classes (0: unconditional).

    ``null``: whether None is valid for a conditional network.
    """
    if label is None:
        if classes and not null:
            raise ValueError(
                f"label must be a class index, since the network is conditional on {classes} classes (for a network "
                "trained with a null class, use its index); got None"
            )
        return None
    if not classes:
        raise ValueError(f"label must be None for an unconditional network, got {label!r}")
    return check_integer("label", label, low=0, high=classes - 1)


def check_schedule(name: str, schedule: Schedule) -> None:
    """Raise a ``ValueError`` unless the noise levels form a nonempty range."""
    low, high = schedule.sigma_min, schedule.sigma_max
    if not (0.0 <= low < high) or math.isinf(low):
        raise ValueError(
            f"{name} must have nonnegative, increasing noise levels, got a range of [{low:.4g}, {high:.4g}]"
        )
