"""Attention that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["DifferentiableAttention"]


class DifferentiableAttention(TorchFunctionMode):
    """Context manager in which this thread's attention runs unfused: PyTorch's fused kernels have one derivative only.

    ``torch.nn.attention.sdpa_kernel`` applies to the whole process and would change the bits of other threads' results.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the two functions that call fused kernels."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _unfused(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            # It calls the other function where this mode is not active, but only if the weights are not needed.
            output, weights = func(*args, **{**kwargs, "need_weights": True})
            return output, weights if kwargs.get("need_weights", True) else None
        return func(*args, **kwargs)


def _unfused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:  # like the replaced function
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            query, key, value = (t.to(dtype) for t in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
            return _unfused(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    output: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return output
