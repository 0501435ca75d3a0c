"""The compiled part of Pursamere: importing it registers ``torch.ops.pursamere.*``."""

from importlib import machinery, metadata
from pathlib import Path

import torch


def _why_not_loaded(error: ImportError) -> str:
    folder = Path(__file__).resolve().parent
    suffix = machinery.EXTENSION_SUFFIXES[0]
    if isinstance(error, ModuleNotFoundError):
        if (folder / "module.cpp").exists():  # only the source folder has it
            try:
                metadata.version("pursamere")
            except metadata.PackageNotFoundError:
                remedy = f"Pursamere is not installed: run 'pip install {folder.parent}' and"
            else:
                remedy = "It hides the installed package:"
            return (
                f"{folder} is the source folder and has no compiled module. {remedy} start Python from another "
                f"directory than {folder.parent}, or take that off sys.path."
            )
        others = ", ".join(sorted(path.name for path in folder.glob("_C.*.so")))
        if others:
            return f"{folder} was built for another Python ({others}, this one needs _C{suffix}): reinstall pursamere."
        return f"{folder} has no compiled module (_C{suffix}): the installation is incomplete, reinstall pursamere."
    return (
        f"The compiled module in {folder} does not load with torch {torch.__version__}: {error}. It needs torch 2.11 "
        "or newer. With such a torch, build it again: 'pip install --force-reinstall --no-deps SOURCE_FOLDER'."
    )


try:
    # Not "from . import _C", which does not tell a module that is missing from one that does not load.
    import pursamere_ext._C as _C
except ImportError as error:
    raise ImportError(_why_not_loaded(error)) from error

from . import ops  # noqa: E402, F401  (it completes the operations that _C registers)

build_info = _C.build_info

__all__ = ["_C", "build_info"]
