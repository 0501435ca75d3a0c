"""The closed-form denoiser of a Gaussian mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pursamere._validation import check_finite, check_nonnegative, check_positive, check_same_device, check_tensor
from pursamere.denoisers._query import check_query

_VARIANCE_RANGE = 1e-60, 1e60
"""Bounds on sigma^2 that keep products with its inverse finite; too extreme to change any result."""


class GaussianMixture(nn.Module):
    """Exact posterior mean for a mixture of M Gaussians with diagonal covariances.

    The prior is ``sum_i weights_i N(means_i, diag(stds_i^2))``. With ``v_i = stds_i^2 + sigma^2``, per pixel, and
    ``p_i`` the posterior probability of component i, proportional to ``weights_i N(y; means_i, diag(v_i))``,

        D(y, sigma) = sum_i p_i (stds_i^2 * y + sigma^2 * means_i) / v_i,

    which by Tweedie's formula equals ``y + sigma^2 * score`` with the score of the mixture with variances ``v_i``.
    Differentiable in ``y`` any number of times. Uses a few tensors [N, M] and [N, C * H * W] of memory. The parameters
    are constants and not part of the state dict. Computed in float64 for every dtype of ``y``.

    Args:
        means: floating-point tensor [M, C, H, W] in pixel space, M at least 1, finite.
        stds: standard deviations in pixel units, at least 0: a number, [M] (isotropic) or [M, C, H, W] (diagonal).
        weights: tensor [M], at least 0 with a positive sum; normalized to sum to 1. Default: equal weights.

    Raises:
        TypeError: an argument is not a floating-point tensor (or, for ``stds``, a number).
        ValueError: a shape does not match ``means``, a value is negative or not finite, or ``weights`` sum to 0.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, stds: float | Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
        check_tensor("means", means, rank=4)
        if means.numel() == 0:
            raise ValueError(
                f"means must hold at least one image of at least one pixel, got shape {tuple(means.shape)}"
            )
        check_finite("means", means)
        if not isinstance(stds, Tensor):
            stds = torch.tensor(check_nonnegative("stds", stds), dtype=torch.float64, device=means.device)
        elif stds.shape != means.shape[:1] and stds.shape != means.shape:
            raise ValueError(
                f"stds must be a number or have the shape {tuple(means.shape[:1])} or {tuple(means.shape)} "
                f"to fit means, got {tuple(stds.shape)}"
            )
        _check_nonnegative_tensor("stds", stds, means)
        if weights is None:
            weights = torch.ones(len(means), dtype=torch.float64, device=means.device)
        _check_nonnegative_tensor("weights", weights, means)
        if weights.shape != means.shape[:1]:
            raise ValueError(
                f"weights must have the shape {tuple(means.shape[:1])} to fit means, got {tuple(weights.shape)}"
            )
        total = weights.detach().double().sum()
        if not total > 0:
            raise ValueError("weights must have a positive sum, got 0")
        self.image_shape = means.shape[1:]
        flat = means.detach().to(torch.float64, copy=True).flatten(1)
        stds = stds.detach().double()
        stds = stds.flatten(1) if stds.dim() == 4 else stds.reshape(-1, 1)
        self.register_buffer("means", flat, persistent=False)
        self.register_buffer("variances", stds.square().expand(flat.shape), persistent=False)
        self.register_buffer("log_weights", (weights.detach().double() / total).log(), persistent=False)

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
            ValueError: ``y`` has a different image shape or device than the means, or ``sigma`` is not positive and
                finite.
        """
        check_query(y, "means", self.image_shape, self.means.device)
        sigma = check_positive("sigma", sigma)
        sigma2 = min(max(sigma * sigma, _VARIANCE_RANGE[0]), _VARIANCE_RANGE[1])
        with torch.autocast(y.device.type, enabled=False):
            means, variances = self.means.double(), self.variances.double()
            origin = means.mean(0)
            means = means - origin
            precisions = 1.0 / (variances + sigma2)
            shrinkage = variances * precisions
            query = y.double().flatten(1) - origin
            # log p_i up to a constant: omits -||query||^2 precisions[0] / 2, which may be large
            constants = self.log_weights + 0.5 * (precisions.log() - precisions * means.square()).sum(1)
            logits = query @ (precisions * means).t() + constants
            logits = logits + query.square() @ (0.5 * (precisions[0] - precisions)).t()
            posterior = torch.softmax(logits, 1)
            denoised = query * (posterior @ shrinkage) + posterior @ (sigma2 * precisions * means)
            return (denoised + origin).view(y.shape).to(y.dtype)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"components={len(self.means)}, shape={tuple(self.image_shape)}"


def _check_nonnegative_tensor(name: str, value: Tensor, means: Tensor) -> None:
    check_tensor(name, value)
    check_same_device(name, value, "means", means)
    check_finite(name, value)
    if bool((value < 0).any()):
        raise ValueError(f"{name} must be at least 0, got a minimum of {float(value.min()):g}")
