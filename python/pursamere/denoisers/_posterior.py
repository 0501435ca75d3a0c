"""The weighted mean of many centers as a differentiable function of the query, computed in blocks of centers.

For queries ``y`` and centers ``c_i`` in R^d, ``w = softmax(-||y - c_i||^2 / (2 s^2))`` and ``m = sum_i w_i c_i``. The
derivatives have closed forms in the central moments of the centers under these weights:

    J = dm/dy = Cov_w(c) / s^2, symmetric, so that  J v = sum_i w_i (c_i - m) <c_i - m, v> / s^2
    d<z, J v>/dy = sum_i w_i (c_i - m) <c_i - m, v> <c_i - m, z> / s^4

``J v`` is both the vector-Jacobian product of ``m`` and linear and symmetric in ``v``, so ``d<z, J v>/dv = J z``.

Weight matrices [queries, centers] larger than ``KEPT_ELEMENTS`` are never materialized; every pass recomputes their
weights block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pursamere._differentiable_once import differentiable_once

TILE_ELEMENTS = 1 << 19
"""Elements of the scratch matrix [rows, block] of weights: 2 MiB in float32, which fits a core's caches."""

KEPT_ELEMENTS = 1 << 22
"""Largest weight matrix that is saved for the backward pass, in elements: 16 MiB in float32."""


class Centers(NamedTuple):
    """The centers [M, d], minus half their squared norms [M], and the block size."""

    points: Tensor
    half_norms: Tensor
    block_size: int

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.points.split(self.block_size), self.half_norms.split(self.block_size), strict=True)

    def keeps_weights(self, queries: int) -> bool:
        """Whether weights are saved. Depends on shapes only, so results don't depend on ``requires_grad``."""
        count = len(self.points)
        return count <= self.block_size and queries * count <= KEPT_ELEMENTS

    def row_tiles(self, queries: int) -> Iterator[slice]:
        # Powers of two divide the usual numbers of queries, so all tiles have the same shape. Rounding in matrix
        # products depends on the shape.
        rows = 1 << (max(1, TILE_ELEMENTS // min(self.block_size, len(self.points))).bit_length() - 1)
        for start in range(0, queries, rows):
            yield slice(start, start + rows)


def _logits(y: Tensor, points: Tensor, half_norms: Tensor, precision: float) -> Tensor:
    """Log weights [rows, block] up to a constant per row; omits the term in ``||y||^2``, which may be large."""
    return torch.addmm(half_norms, y, points.t(), beta=precision, alpha=precision)


class _Weights(NamedTuple):
    """The weights at the queries ``y``: ``saved`` is ``(weights,)``, or ``(peak, total)`` to recompute them."""

    centers: Centers
    precision: float
    y: Tensor
    saved: tuple[Tensor, ...]

    def blocks(self, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each block of centers with its weights [rows, block], which must not be modified."""
        if len(self.saved) == 1:
            yield self.centers.points, self.saved[0][rows]
            return
        peak, total = (each[rows] for each in self.saved)
        for points, half_norms in self.centers.blocks():
            weights = _logits(self.y[rows], points, half_norms, self.precision)
            yield points, weights.sub_(peak).exp_().div_(total)


def _mean(y: Tensor, centers: Centers, precision: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``m`` [N, d] and the tensors to save for ``_Weights``."""
    mean = torch.empty_like(y)
    if centers.keeps_weights(len(y)):
        weights = y.new_empty(len(y), len(centers.points))
        for rows in centers.row_tiles(len(y)):
            logits = _logits(y[rows], centers.points, centers.half_norms, precision)
            torch.softmax(logits, 1, out=weights[rows])
            torch.mm(weights[rows], centers.points, out=mean[rows])
        return mean, (weights,)
    peaks, totals = y.new_empty(len(y), 1), y.new_empty(len(y), 1)
    for rows in centers.row_tiles(len(y)):
        sums = torch.zeros_like(y[rows])
        total = torch.zeros_like(totals[rows])
        peak = torch.full_like(total, -torch.inf)
        for points, half_norms in centers.blocks():
            logits = _logits(y[rows], points, half_norms, precision)
            new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
            weights = logits.sub_(new_peak).exp_()
            decay = peak.sub_(new_peak).exp_()
            total.mul_(decay).add_(weights.sum(1, keepdim=True))
            sums.mul_(decay).addmm_(weights, points)
            peak = new_peak
        torch.div(sums, total, out=mean[rows])
        peaks[rows], totals[rows] = peak, total
    return mean, (peaks, totals)


def _central_moments(weights: _Weights, mean: Tensor, *directions: Tensor) -> list[Tensor]:
    """Return, for every k, ``sum_i w_i (c_i - m) <c_i - m, v_1> ... <c_i - m, v_k>`` with the v the ``directions``.

    The inner products are central; the outer factor is evaluated as ``sum_i p_i c_i - m sum_i p_i``. If one weight
    dominates, this makes rounding errors cancel instead of being multiplied by 1 / s^2.
    """
    moments = [torch.empty_like(mean) for _ in directions]
    offsets = [(mean * v).sum(1, keepdim=True).neg_() for v in directions]
    for rows in weights.centers.row_tiles(len(mean)):
        sums = [torch.zeros_like(mean[rows]) for _ in directions]
        masses = [torch.zeros_like(offset[rows]) for offset in offsets]
        for points, products in weights.blocks(rows):
            for k, v in enumerate(directions):
                products = torch.addmm(offsets[k][rows], v[rows], points.t()).mul_(products)
                sums[k].addmm_(products, points)
                masses[k].add_(products.sum(1, keepdim=True))
        for moment, total, mass in zip(moments, sums, masses, strict=True):
            torch.addcmul(total, mean[rows], mass, value=-1, out=moment[rows])
    return moments


def _in_own_dtype(method: Callable[..., Any]) -> Callable[..., Any]:
    """Disable autocast, which would round the logits to half precision, in a method of an autograd function."""

    @functools.wraps(method)
    def run(ctx: Any, first: Tensor, *others: Any) -> Any:
        device = first.device.type
        if not torch.is_autocast_enabled(device):
            return method(ctx, first, *others)
        with torch.autocast(device, enabled=False):
            return method(ctx, first, *others)

    return run


class _PosteriorMean(torch.autograd.Function):
    @staticmethod
    @_in_own_dtype
    def forward(ctx: Any, y: Tensor, centers: Centers, precision: float) -> Tensor:
        mean, saved = _mean(y, centers, precision)
        ctx.save_for_backward(y, mean, *saved)
        ctx.centers, ctx.precision = centers, precision
        return mean.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        y, mean, *saved = ctx.saved_tensors
        return _JacobianProduct.apply(y, v, mean, ctx.centers, ctx.precision, *saved), None, None


class _JacobianProduct(torch.autograd.Function):
    @staticmethod
    @_in_own_dtype
    def forward(
        ctx: Any, y: Tensor, v: Tensor, mean: Tensor, centers: Centers, precision: float, *saved: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y, v, mean, *saved)
        ctx.centers, ctx.precision = centers, precision
        (moment,) = _central_moments(_Weights(centers, precision, y, saved), mean, v)
        return moment.mul_(precision)

    @staticmethod
    @_in_own_dtype
    @differentiable_once("a closed-form denoiser can be differentiated at most twice")
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        y, v, mean, *saved = ctx.saved_tensors
        weights = _Weights(ctx.centers, ctx.precision, y, tuple(saved))
        directions = (z, v) if ctx.needs_input_grad[0] else (z,)
        v_grad, *y_grads = (moment.mul_(ctx.precision) for moment in _central_moments(weights, mean, *directions))
        y_grad = y_grads[0].mul_(ctx.precision) if y_grads else None
        return y_grad, v_grad, *(None for _ in ctx.needs_input_grad[2:])


def posterior_mean(y: Tensor, centers: Centers, precision: float) -> Tensor:
    """Return ``m`` [N, d] at the queries ``y`` [N, d] for ``precision = 1 / s^2``, twice differentiable in ``y``."""
    return cast(Tensor, _PosteriorMean.apply(y, centers, precision))
