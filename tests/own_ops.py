"""Watches which of the library's ops run."""

from torch.utils._python_dispatch import TorchDispatchMode


class OwnOps(TorchDispatchMode):
    """Lists the library's ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pursamere":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))
