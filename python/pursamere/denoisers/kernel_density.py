"""The closed-form denoiser of a kernel density estimate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._validation import check_finite, check_integer, check_nonnegative, check_positive, check_tensor
from pursamere.denoisers._posterior import Centers, posterior_mean
from pursamere.denoisers._query import check_query


class KernelDensity(nn.Module):
    """Exact posterior mean under the kernel density estimate of a set of images. Needs no training.

    The prior is the uniform mixture of ``N(image_i, bandwidth^2 I)``; for ``bandwidth = 0``, the empirical one.
    With ``s^2 = sigma^2 + bandwidth^2`` and ``w = softmax_i(-||y - image_i||^2 / (2 s^2))``,

        D(y, sigma) = (sigma^2 * sum_i w_i image_i + bandwidth^2 * y) / s^2,

    which by Tweedie's formula equals ``y + sigma^2 * score`` with the score of the mixture of ``N(image_i, s^2 I)``.

    Images are processed in blocks, so working memory depends neither on their number nor on the batch size, except for
    one centered copy of the images in the dtype of ``y``. Twice differentiable in ``y`` in closed form with the same
    memory; a call may save up to 2^22 weights for the backward pass. Half precision is computed in float32, other
    dtypes in the dtype of ``y``. Autocast has no effect.

    The images are a non-persistent buffer: they move with the module but are not saved in checkpoints.

    Args:
        images: floating-point tensor [M, C, H, W] in pixel space, M at least 1, finite. Not copied.
        bandwidth: standard deviation of the kernel in pixel units, at least 0.
        block_size: number of images per block, at least 1.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, or a number has the wrong type.
        ValueError: ``images`` is empty, not finite or not of rank 4, ``bandwidth`` is negative or not finite, or
            ``block_size`` is less than 1.
    """

    images: Tensor

    def __init__(self, images: Tensor, bandwidth: float, *, block_size: int = 2048) -> None:
        super().__init__()
        check_tensor("images", images, rank=4)
        if images.numel() == 0:
            raise ValueError(
                f"images must hold at least one image of at least one pixel, got shape {tuple(images.shape)}"
            )
        self.bandwidth = check_nonnegative("bandwidth", bandwidth)
        self.block_size = check_integer("block_size", block_size, low=1)
        check_finite("images", torch.stack(torch.aminmax(images.detach())))  # avoids a temporary as large as the images
        self.register_buffer("images", images.detach(), persistent=False)
        self._working_copy: tuple[Tensor, int, torch.dtype, Tensor, Centers] | None = None

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        """Return the posterior mean.

        NaN and infinity in ``y`` propagate to the result; checking for them would cost a device synchronization.

        Args:
            y: noisy images [N, C, H, W], floating point, N at least 0.
            sigma: standard deviation of the noise in pixel units, positive.

        Returns:
            Tensor [N, C, H, W] in the dtype of ``y``.

        Raises:
            TypeError: ``y`` is not a floating-point tensor, or ``sigma`` is not a real number.
            ValueError: ``y`` has a different image shape or device than the images, or ``sigma`` is not positive and
                finite.
        """
        check_query(y, "images", self.images.shape[1:], self.images.device)
        sigma = check_positive("sigma", sigma)
        dtype = torch.promote_types(y.dtype, torch.float32)
        origin, centers = self._centered(dtype)
        scale = math.hypot(sigma, self.bandwidth)
        # Beyond this bound, rounding decides between nearby images; below it, rounding errors times 1 / s^4 stay small.
        precision = min(1.0 / scale, torch.finfo(dtype).eps ** -0.625) ** 2
        query = y.to(dtype).flatten(1) - origin
        result = posterior_mean(query, centers, precision)
        if self.bandwidth > 0.0:
            result = torch.lerp(result, query, (self.bandwidth / scale) ** 2)
        return (result + origin).view(y.shape).to(y.dtype)

    @property
    def image_shape(self) -> torch.Size:
        """(C, H, W) of the images."""
        return self.images.shape[1:]

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"images={tuple(self.images.shape)}, bandwidth={self.bandwidth:g}, block_size={self.block_size}"

    def _centered(self, dtype: torch.dtype) -> tuple[Tensor, Centers]:
        """Return the mean [d] of the images and the centered images, cached per dtype, device and images.

        Centering keeps the logits and their rounding errors small.
        """
        images, version = self.images, 0 if self.images.is_inference() else self.images._version
        cached = self._working_copy
        if cached is None or cached[0] is not images or cached[1:3] != (version, dtype):
            flat = images.flatten(1)
            origin = flat.mean(0, dtype=dtype)
            points = flat.to(dtype, copy=True).sub_(origin)
            half_norms = torch.linalg.vector_norm(points, dim=1).square_().mul_(-0.5)
            cached = images, version, dtype, origin, Centers(points, half_norms, self.block_size)
            if points.is_cuda and not torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream(points.device).synchronize()  # another thread may read it on its own stream
            self._working_copy = cached
        return cached[3:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_working_copy": None}
