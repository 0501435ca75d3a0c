"""Whether a function of a batch treats its rows alike and apart, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .noise import GaussianNoise

MODES = ("warn", "strict", "off")


class RowCheck:
    """Checks once per network, shape, dtype and device that rows do not depend on one another, and warns or raises.

    Args:
        name: of the network, for the message.
        mode: "warn", "strict" (an error) or "off".
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name, self.mode = name, mode
        self._checked: set[tuple[object, ...]] = set()

    def __call__(
        self, network: object, function: Callable[[Tensor], Sequence[Tensor]], shape: Sequence[int], like: Tensor
    ) -> None:
        """Check ``function``, which runs ``network``, on images of ``shape``, of the dtype and device of ``like``."""
        key = (id(network), tuple(shape), like.dtype, like.device)
        if shape[0] == 1 or self.mode == "off" or key in self._checked:
            return
        if depends_on_companions(function, shape, like.device, like.dtype):
            message = (
                f"the {self.name}'s results for one image depend on the other images in a micro-batch of {shape[0]}; "
                "set micro_batch=1 for results that do not depend on the batch"
            )
            if self.mode == "strict":
                raise RuntimeError(message)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self._checked.add(key)


def depends_on_companions(
    function: Callable[[Tensor], Sequence[Tensor]], shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> bool:
    """Return whether a row's result depends on its position or on the other rows.

    ``function`` maps images [B, C, H, W] to tensors whose first dimension is B; it is run on four arrangements of
    made-up images: as they are, reversed, rotated by one, and one image in every row.

    Args:
        function: deterministic; called four times.
        shape: [B, C, H, W], the fixed shape to check.
        device: of the images.
        dtype: of the images.
    """
    size = shape[0]
    bank = GaussianNoise(seed=0, draws=size, antithetic=False).sample(tuple(shape[1:]), device, dtype)
    images = (0.5 + 0.25 * bank).clamp(0.0, 1.0)
    expected = function(images)
    rows = torch.arange(size, device=device)
    for order in (rows.flip(0), rows.roll(1), torch.zeros_like(rows)):
        for got, want in zip(function(images[order]), expected, strict=True):
            if not torch.equal(got, want[order]):
                return True
    return False
