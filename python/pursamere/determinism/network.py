"""Checks that a network can run deterministically: in evaluation mode, on the device of its input."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "check_evaluation_mode",
    "check_same_device",
    "hooks_of",
    "is_compiled",
    "is_more_than_its_methods",
    "parameters_of",
    "refused_training_layers",
]

_STOCHASTIC_OR_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.MultiheadAttention,
)


def check_evaluation_mode(name: str, network: object) -> None:
    """Refuse a module with a training layer that is random, mixes samples, or updates itself in training mode."""
    if not isinstance(network, nn.Module) or not any(map(_changes_in_training, _modules(network))):
        return
    path, module = next(each for each in network.named_modules() if _changes_in_training(each[1]))
    raise ValueError(
        f"{name} must be in evaluation mode, but its layer {path or type(module).__name__!r} is training; "
        f"call {name}.eval()"
    )


@contextmanager
def refused_training_layers(name: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Refuse, in this thread, to run one of ``modules`` that :func:`check_evaluation_mode` refuses.

    For the modules that a function holds, of which it may not run all.
    """
    thread = threading.get_ident()

    def refuse(layer: nn.Module, _: object) -> None:
        if threading.get_ident() == thread:
            raise ValueError(
                f"{name} must be in evaluation mode, but its layer {type(layer).__name__!r} is training; call .eval() "
                "on the network that it runs"
            )

    handles = [layer.register_forward_pre_hook(refuse) for layer in modules if _changes_in_training(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_same_device(name: str, network: object, x: Tensor) -> None:
    """Refuse images on a different device than the parameters and buffers of a module."""
    if not isinstance(network, nn.Module) or all(_is_on(x.device, module) for module in _modules(network)):
        return
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.device != x.device:
            raise ValueError(f"x must be on the device of {name}.{path}, {tensor.device}, got {x.device}")


def is_compiled(network: object) -> bool:
    """Whether ``torch.compile`` was applied to a network or to one of its modules."""
    return any(map(_is_compiled_itself, _modules(network) if isinstance(network, nn.Module) else (network,)))


def is_more_than_its_methods(network: object) -> bool:
    """Whether calling a module does more than its methods: it has hooks, another ``forward``, or is compiled."""
    if not isinstance(network, nn.Module):
        return False
    return any(hooks_of(network)) or "forward" in vars(network) or _is_compiled_itself(network)


def hooks_of(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    """Return the hooks that a call of the module, or its derivative, runs."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters, also of a replica of DataParallel, whose ``parameters()`` are empty."""
    for part in module.modules():
        held: Iterable[Tensor | None] = getattr(part, "_former_parameters", part._parameters).values()
        yield from (parameter for parameter in held if parameter is not None)


def _modules(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules once each, as ``network.modules()`` does in ten times the time: every call walks over them."""
    pending, seen = [network], set()
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            yield module
            pending += [child for child in module._modules.values() if child is not None]


def _is_compiled_itself(network: object) -> bool:
    marks = ("_orig_mod", "_torchdynamo_orig_callable", "_compiled_call_impl")  # the last is None by default
    return any(getattr(network, mark, None) is not None for mark in marks)


def _changes_in_training(module: nn.Module) -> bool:
    if not (module.training and isinstance(module, _STOCHASTIC_OR_MIXING)):
        return False
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout != 0
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p != 0
    return True


def _is_on(device: torch.device, module: nn.Module) -> bool:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return all(tensor is None or tensor.device == device for tensor in tensors)
