"""Shapes and dtypes of the ops' results, for ``torch.compile``, ``torch.export`` and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("pursamere::noise")
def _noise(like: Tensor, draws: int, seed: int, antithetic: bool) -> Tensor:
    return like.new_empty((draws, *like.shape))


@torch.library.register_fake("pursamere::perturb")
def _perturb(
    x: Tensor, sigma: float, draws: int, seed: int, antithetic: bool, dtype: torch.dtype | None = None
) -> Tensor:
    return x.new_empty((draws, *x.shape), dtype=dtype or x.dtype)


@torch.library.register_fake("pursamere::residual")
def _residual(
    x: Tensor, prediction: Tensor, kind: str, sigma: float, seed: int, antithetic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous_like(prediction), _contiguous_like(x), _one_per_sample(x)


@torch.library.register_fake("pursamere::accumulate_ascend")
def _accumulate_ascend(
    x: Tensor, per_draw: Tensor, direct: Tensor | None, ascent_radius: float
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(x), _one_per_sample(x)


@torch.library.register_fake("pursamere::accumulate_descend")
def _accumulate_descend(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
) -> Tensor:
    return _contiguous_like(x)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _one_per_sample(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((x.shape[0],), dtype=dtype)
