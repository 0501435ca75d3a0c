"""Functions that only run eagerly, not under PyTorch's transforms, compilers and exporters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ._run_op import innermost_transform

__all__ = ["check_eager", "eager_only"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Private to PyTorch. Without it, vmap fails with its own error.
_is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def eager_only(function: _Function) -> _Function:
    """Decorate a function that can't be traced, because it checks values and differentiates networks.

    ``torch.compile`` runs it eagerly, with the same bits. With ``fullgraph=True``, and under ``torch.export``,
    ``torch.jit.trace`` and ``torch.func`` transforms, it raises an error that says what to do.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        check_eager()
        return function(*args, **kwargs)

    reason = (
        "purification differentiates the denoiser itself, so it runs eagerly: compile the denoiser and the classifier"
    )
    return cast(_Function, torch.compiler.disable(run, reason=reason))


def check_eager(*gradients: Tensor) -> None:
    """Refuse to run inside a transform or an exporter, or on batched gradients."""
    transformed = innermost_transform is not None and innermost_transform() is not None
    if transformed or any(map(_is_batched, gradients)):
        raise NotImplementedError(
            "torch.func transforms and vmap can't go through purification, which differentiates the denoiser itself: "
            "use torch.autograd.grad without is_grads_batched=True, or torch.autograd.functional.jacobian with "
            "vectorize=False; it takes batches as they are"
        )
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
        raise NotImplementedError(
            "purification can't be exported or traced, since it differentiates the denoiser and checks values: export "
            "the denoiser and the classifier, and purify in Python"
        )
