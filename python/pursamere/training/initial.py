"""Initial weights that depend on a seed only."""

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
    """Inside the block, networks that this thread builds get the weights of ``seed``.

    These are the weights that they would get after ``torch.manual_seed(seed)``, but PyTorch's random state, which
    belongs to all threads, is left alone.

    Raises:
        RuntimeError: something draws random numbers that can't be given a generator.
    """
    cpu = torch.device("cpu")  # whatever the default device is: the generator is there
    with cpu, NoRandomNumbers("initialization"), _FromGenerator(torch.Generator(cpu).manual_seed(seed)):
        yield


class _FromGenerator(TorchFunctionMode):
    """Hands a generator to the initializers."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Add the generator where one is taken and none is given."""
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
