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
    """Exact posterior mean for the kernel density estimate of a set of images; nothing is trained.

    The prior is the uniform mixture of ``N(image_i, bandwidth^2 I)``, for ``bandwidth = 0`` the empirical distribution.
    With ``s^2 = sigma^2 + bandwidth^2`` and ``w = softmax_i(-||y - image_i||^2 / (2 s^2))``,

        D(y, sigma) = (sigma^2 * sum_i w_i image_i + bandwidth^2 * y) / s^2,

    which by Tweedie's formula is ``y + sigma^2 * score``, the score being that of the mixture of ``N(image_i, s^2 I)``.

    The images are visited in blocks, so working memory depends neither on their number nor on that of the queries; the
    inputs, the outputs and one centered working copy of the images (as many bytes as the images in the dtype of ``y``)
    come on top. Differentiable twice in ``y`` by closed forms, with the same memory; a call may keep up to 2^22 weights
    for them. Half precision is computed in float32, other dtypes in the dtype of ``y``; autocast has no effect.

    The images are a buffer, so they move with the module, but not a persistent one: a checkpoint that holds this
    denoiser should not carry a data set, from which the module is built anyway.

    Args:
        images: floating tensor [M, C, H, W] in pixel space, M at least 1, finite. It is not copied.
        bandwidth: standard deviation of the kernel in pixel units, at least 0.
        block_size: how many images are visited at a time, at least 1.

    Raises:
        TypeError: ``images`` is no floating tensor, or a number has the wrong type.
        ValueError: ``images`` is empty, not of rank 4 or not finite; ``bandwidth`` is negative or not finite.
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
        check_finite("images", torch.stack(torch.aminmax(images.detach())))  # no temporary of the size of the images
        self.register_buffer("images", images.detach(), persistent=False)
        self._working_copy: tuple[Tensor, int, torch.dtype, Tensor, Centers] | None = None

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        """Return the posterior mean [N, C, H, W] at ``y`` [N, C, H, W], N at least 0, in the dtype of ``y``.

        NaN or infinity in ``y`` is not looked for, which would cost a synchronization a call; it shows in the result.

        Raises:
            TypeError: ``y`` is no floating tensor, or ``sigma`` no real number.
            ValueError: ``y`` has another image shape or device than the images; ``sigma`` is not positive and finite.
        """
        check_query(y, "images", self.images.shape[1:], self.images.device)
        sigma = check_positive("sigma", sigma)
        dtype = torch.promote_types(y.dtype, torch.float32)
        origin, centers = self._centered(dtype)
        scale = math.hypot(sigma, self.bandwidth)
        # Beyond this bound rounding decides between nearby images; below it, 1 / s^4 times rounding errors stays small.
        precision = min(1.0 / scale, torch.finfo(dtype).eps ** -0.625) ** 2
        query = y.to(dtype).flatten(1) - origin
        result = posterior_mean(query, centers, precision)
        if self.bandwidth > 0.0:
            result = torch.lerp(result, query, (self.bandwidth / scale) ** 2)
        return (result + origin).view(y.shape).to(y.dtype)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"images={tuple(self.images.shape)}, bandwidth={self.bandwidth:g}, block_size={self.block_size}"

    def _centered(self, dtype: torch.dtype) -> tuple[Tensor, Centers]:
        """Return the mean [d] of the images and the images about it, made once per dtype, device and state of images.

        Centring keeps the logits, and with them their rounding errors, small.
        """
        images, version = self.images, 0 if self.images.is_inference() else self.images._version
        cached = self._working_copy
        if cached is None or cached[0] is not images or cached[1:3] != (version, dtype):
            flat = images.flatten(1)
            origin = flat.mean(0, dtype=dtype)
            points = flat.to(dtype, copy=True).sub_(origin)
            half_norms = torch.linalg.vector_norm(points, dim=1).square_().mul_(-0.5)
            cached = images, version, dtype, origin, Centers(points, half_norms, self.block_size)
            self._working_copy = cached
        return cached[3:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_working_copy": None}
