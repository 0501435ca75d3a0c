"""Initial weights that depend only on a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pursamere.determinism import NoRandomNumbers


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialize networks that this thread builds in the block as after ``torch.manual_seed(seed)``.

    PyTorch's global random state, which all threads share, is neither read nor changed.

    Raises:
        RuntimeError: an operation draws random numbers but takes no generator.
    """
    cpu = torch.device("cpu")  # overrides the default device, since the generator is on the CPU
    with cpu, NoRandomNumbers("initialization"), _FromGenerator(torch.Generator(cpu).manual_seed(seed)):
        yield


class _FromGenerator(TorchFunctionMode):
    """Passes a generator to initializers."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Add the generator to calls that don't specify one."""
        kwargs = kwargs or {}
        if func in _INITIALIZERS and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


_INITIALIZERS = (
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.trunc_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.orthogonal_,
    nn.init.sparse_,
    Tensor.uniform_,
    Tensor.normal_,
    torch.rand,
    torch.randn,
    torch.randperm,
)
