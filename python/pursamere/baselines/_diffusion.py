"""The noise of purifiers that add noise to an image and denoise it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pursamere import functional
from pursamere._eager import eager_only
from pursamere._validation import check_integer, check_tensor
from pursamere.denoisers.protocol import Denoiser
from pursamere.noise import GaussianNoise
from pursamere.stepping import IterativePurifier, StepMode

from ._randomness import derived, of_image, single_draw

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DiffusionPurifier"]


class DiffusionPurifier(IterativePurifier):
    """Base class whose steps add noise: the same in every call or, with ``fresh_noise``, the next of a sequence.

    Args:
        denoiser: see :class:`pursamere.IterativePurifier`.
        steps: number of steps, from 1 to 100,000.
        noise: gives the seed; every step takes one draw.
        fresh_noise: whether every call uses new noise.
        **options: for :class:`pursamere.IterativePurifier`.
    """

    def __init__(
        self, denoiser: Denoiser, *, steps: int, noise: GaussianNoise | None, fresh_noise: bool, **options: Any
    ) -> None:
        check_integer("steps", steps, low=1)
        super().__init__(denoiser, steps=steps, noise=single_draw(noise), **options)
        if not isinstance(fresh_noise, bool):
            raise TypeError(f"fresh_noise must be a bool, got {type(fresh_noise).__name__}")
        self.random = fresh_noise
        self._calls = 0

    @eager_only
    def forward(self, x: Tensor, gradient: str = "exact", image_ids: Tensor | None = None) -> Tensor:
        """Return the purified images, see :meth:`pursamere.IterativePurifier.forward`.

        All images of a call share its noise. With ``image_ids``, images with different ids get independent noise, and
        an image with its id has the same bits in any batch. Ids are the caller's, for example positions in a data set;
        :class:`pursamere.PurifiedClassifier` passes none.

        Args:
            x: images [B, C, H, W] in [0, 1].
            gradient: see :meth:`pursamere.IterativePurifier.forward`.
            image_ids: integers [B], at least 0.

        Raises what that method raises, and:
            TypeError: ``image_ids`` is not an integer tensor.
            ValueError: ``image_ids`` is not [B], or has negative values.
        """
        return self._forward(x, gradient, None if image_ids is None else _checked_ids(image_ids, x))

    def reset(self, seed: int | None = None) -> None:
        """Restart the sequence of noises, with another seed if one is given."""
        if seed is not None:
            vars(self)["noise"] = single_draw(GaussianNoise(seed=seed))  # the attribute itself is read-only
        self._calls = 0

    def _noise_of_call(self, x: Tensor) -> GaussianNoise:
        if not self.random:
            return self.noise
        self._calls = number = self._calls + 1
        return derived(self.noise, number)

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()  # which makes one call, and is dropped
        self._calls += 1
        return replica

    def _noisy(self, x: Tensor, sigma: float, mode: StepMode, number: int) -> Tensor:
        """Return ``x`` plus noise; ``number`` is 0 before the first step and t + 1 in step t."""
        if mode.image_ids is None:
            return functional.perturb(x, sigma, derived(mode.noise, number))[0]
        noises = [derived(of_image(mode.noise, image_id), number) for image_id in mode.image_ids.tolist()]
        rows = zip(x.split(1), noises, strict=True)
        return torch.cat([functional.perturb(row, sigma, noise)[0] for row, noise in rows])


def _checked_ids(image_ids: Tensor, x: Tensor) -> Tensor:
    check_tensor("image_ids", image_ids, rank=1, floating=False)
    if image_ids.is_floating_point() or image_ids.is_complex() or image_ids.dtype == torch.bool:
        raise TypeError(f"image_ids must hold integers, got {image_ids.dtype}")
    if len(image_ids) != (images := len(check_tensor("x", x, rank=4))):
        raise ValueError(f"image_ids must have one entry for each of {images} images, got {len(image_ids)}")
    ids = image_ids.detach().to("cpu", torch.int64)
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"image_ids must be at least 0, got {int(ids.min())}")
    return ids
