"""What a network must be to give the same result every time: in evaluation mode, at home on the device, not random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STOCHASTIC_OR_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.MultiheadAttention,
)


def check_evaluation_mode(name: str, network: object) -> None:
    """Refuse a module with a layer that is random, mixes samples or changes itself in training mode, and is in it."""
    if not isinstance(network, nn.Module):
        return
    for path, module in network.named_modules():
        if not (module.training and isinstance(module, _STOCHASTIC_OR_MIXING)):
            continue
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and not module.track_running_stats:
            continue
        if isinstance(module, nn.MultiheadAttention) and module.dropout == 0:
            continue
        raise ValueError(
            f"{name} must be in evaluation mode, but its layer {path or type(module).__name__!r} is training; "
            f"call {name}.eval()"
        )


def check_same_device(name: str, network: object, x: Tensor) -> None:
    """Refuse images on another device than a module's."""
    if not isinstance(network, nn.Module):
        return
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.device != x.device:
            raise ValueError(f"x must be on the device of {name}.{path}, {tensor.device}, got {x.device}")


def versions(network: object) -> list[int]:
    """Counters that change when a module's parameters or buffers are changed in place; empty for a function."""
    if not isinstance(network, nn.Module):
        return []
    return [t._version for t in (*network.parameters(), *network.buffers()) if not t.is_inference()]


@contextmanager
def no_random_numbers(device: torch.device) -> Iterator[None]:
    """Raise if the block draws from PyTorch's random state, on the CPU or on ``device``."""
    before = _random_state(device)
    yield
    if not all(torch.equal(a, b) for a, b in zip(before, _random_state(device), strict=True)):
        raise RuntimeError(
            "the denoiser drew random numbers from PyTorch's global state, so its results are not repeatable; "
            "switch it to evaluation mode, or fix its noise"
        )


@contextmanager
def repeatable_algorithms(device: torch.device) -> Iterator[None]:
    """Inside the block, keep cuDNN on CUDA to algorithms that are deterministic and not chosen by timing them."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
