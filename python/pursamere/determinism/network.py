"""Checks that a network can run deterministically: in evaluation mode, on the device of its input."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["check_evaluation_mode", "check_same_device", "is_compiled"]

_STOCHASTIC_OR_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.MultiheadAttention,
)


def check_evaluation_mode(name: str, network: object) -> None:
    """Refuse a module with a training layer that is random, mixes samples, or updates itself in training mode."""
    if not isinstance(network, nn.Module):
        return
    for path, module in network.named_modules():
        if not (module.training and isinstance(module, _STOCHASTIC_OR_MIXING)):
            continue
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and not module.track_running_stats:
            continue
        if isinstance(module, nn.MultiheadAttention) and module.dropout == 0:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
            continue
        raise ValueError(
            f"{name} must be in evaluation mode, but its layer {path or type(module).__name__!r} is training; "
            f"call {name}.eval()"
        )


def check_same_device(name: str, network: object, x: Tensor) -> None:
    """Refuse images on a different device than the parameters and buffers of a module."""
    if not isinstance(network, nn.Module):
        return
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.device != x.device:
            raise ValueError(f"x must be on the device of {name}.{path}, {tensor.device}, got {x.device}")


def is_compiled(network: object) -> bool:
    """Whether ``torch.compile`` was applied to a network or to one of its modules."""
    modules = network.modules() if isinstance(network, nn.Module) else (network,)
    marks = ("_orig_mod", "_torchdynamo_orig_callable", "_compiled_call_impl")  # the last is None by default
    return any(getattr(module, mark, None) is not None for module in modules for mark in marks)
