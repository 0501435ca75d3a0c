"""Checks that a network repeats its results and treats the rows of a batch independently, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pursamere.noise import GaussianNoise

from .random_numbers import without_random_numbers

__all__ = ["INVARIANCE_MODES", "NetworkCheck", "sample_images"]

INVARIANCE_MODES = ("warn", "strict", "off")

_CALLS_TO_SETTLE = 4  # TorchScript rewrites a network during its first calls; after that its results repeat


class NetworkCheck:
    """Checks a network once per shape, dtype and device: its results repeat, and rows are independent.

    Args:
        name: the network's name in messages.
        invariance: what to do if rows depend on one another: "warn", "strict" (raise) or "off" (no check).
    """

    def __init__(self, name: str, invariance: str) -> None:
        self.name, self.invariance = name, invariance
        self._checked: set[tuple[object, ...]] = set()

    def __call__(self, function: Callable[[Tensor], Sequence[Tensor]], shape: Sequence[int], like: Tensor) -> None:
        """Check ``function``, which runs the network, on images of ``shape`` with the dtype and device of ``like``.

        Raises:
            RuntimeError: the network draws random numbers from PyTorch's global state, its results differ between
                calls, or, with ``invariance="strict"``, rows depend on one another.
        """
        key = (tuple(shape), like.dtype, like.device)
        if key in self._checked or like.device.type == "meta":
            return
        images = sample_images(shape, like.device, like.dtype)
        expected = without_random_numbers(self.name, lambda: function(images))
        for _ in range(_CALLS_TO_SETTLE):
            previous, expected = expected, function(images)
            if _same(previous, expected):
                break
        else:
            raise RuntimeError(
                f"the {self.name} returned other values when it was called again with the same images; it must be "
                "deterministic (switch it to evaluation mode, fix its noise, or see torch.use_deterministic_algorithms)"
            )
        if shape[0] > 1 and self.invariance != "off" and _depends_on_companions(function, images, expected):
            message = (
                f"the {self.name}'s results for one image depend on the other images in a micro-batch of {shape[0]}; "
                "set micro_batch=1 for results that do not depend on the batch"
            )
            if self.invariance == "strict":
                raise RuntimeError(message)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self._checked.add(key)


def sample_images(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return different images in [0, 1] to run a network on, of shape [B, C, H, W]."""
    bank = GaussianNoise(seed=0, draws=shape[0], antithetic=False).sample(tuple(shape[1:]), device, dtype)
    return (0.5 + 0.25 * bank).clamp(0.0, 1.0)


def _depends_on_companions(
    function: Callable[[Tensor], Sequence[Tensor]], images: Tensor, expected: Sequence[Tensor]
) -> bool:
    """Whether a row's result depends on its position or on the other rows.

    Compares ``expected = function(images)`` with three other arrangements: reversed, rotated by one, and the first
    image in every row.
    """
    rows = torch.arange(len(images), device=images.device)
    return not all(
        _same(function(images[order]), [want[order] for want in expected])
        for order in (rows.flip(0), rows.roll(1), torch.zeros_like(rows))
    )


def _same(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Whether two results have the same bits; all NaNs count as equal."""
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(got, want, strict=True))
