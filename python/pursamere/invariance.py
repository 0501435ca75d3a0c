"""Whether a network repeats its results, and treats the rows of a batch alike and apart, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .networks import without_random_numbers
from .noise import GaussianNoise

# TorchScript rewrites a network in its first calls, after which the bits stay.
_CALLS_TO_SETTLE = 4
MODES = ("warn", "strict", "off")


class NetworkCheck:
    """Checks a network once per shape, dtype and device: its results repeat, and rows do not depend on one another.

    Args:
        name: of the network, for the messages.
        mode: what to do about rows that depend on one another: "warn", "strict" (an error) or "off" (no check).
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name, self.mode = name, mode
        self._network: object = None
        self._checked: set[tuple[object, ...]] = set()

    def __call__(
        self, network: object, function: Callable[[Tensor], Sequence[Tensor]], shape: Sequence[int], like: Tensor
    ) -> None:
        """Check ``function``, which runs ``network``, on images of ``shape``, of the dtype and device of ``like``.

        Raises:
            RuntimeError: the network draws random numbers from PyTorch's global state, or its results differ from call
                to call, or, with the mode "strict", rows depend on one another.
        """
        if network is not self._network:
            self._network, self._checked = network, set()
        key = (tuple(shape), like.dtype, like.device)
        if key in self._checked or like.device.type == "meta":
            return
        images = made_up_images(shape, like.device, like.dtype)
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
        if shape[0] > 1 and self.mode != "off" and _depends_on_companions(function, images, expected):
            message = (
                f"the {self.name}'s results for one image depend on the other images in a micro-batch of {shape[0]}; "
                "set micro_batch=1 for results that do not depend on the batch"
            )
            if self.mode == "strict":
                raise RuntimeError(message)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self._checked.add(key)


def made_up_images(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images [B, C, H, W] in [0, 1] of the given shape, each another one."""
    bank = GaussianNoise(seed=0, draws=shape[0], antithetic=False).sample(tuple(shape[1:]), device, dtype)
    return (0.5 + 0.25 * bank).clamp(0.0, 1.0)


def _depends_on_companions(
    function: Callable[[Tensor], Sequence[Tensor]], images: Tensor, expected: Sequence[Tensor]
) -> bool:
    """Whether a row's result depends on its position or on the other rows.

    ``function`` maps images [B, C, H, W] to tensors whose first dimension is B, and the given ones to ``expected``; it
    is run on three more arrangements: reversed, rotated by one, and one image in every row.
    """
    rows = torch.arange(len(images), device=images.device)
    return not all(
        _same(function(images[order]), [want[order] for want in expected])
        for order in (rows.flip(0), rows.roll(1), torch.zeros_like(rows))
    )


def _same(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Whether two results have the same bits, NaN counting as one value."""
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(got, want, strict=True))
