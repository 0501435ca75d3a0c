"""The reference images of ``pursamere purify``, from whose distribution the inputs should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pursamere._images import FORMAT_NAMES, common_channels, read_images
from pursamere.cli.errors import CommandError
from pursamere.cli.images import check_apart, find_images
from pursamere.datasets import load
from pursamere.datasets.npz import read_unlabeled

__all__ = ["load_reference"]

# All splits that can be spared: nothing is evaluated on them.
_SPLITS = {"digits": "all", "mnist": "train+validation", "cifar10": "train+validation"}


def load_reference(name: str, *, output: Path | None = None, targets: Sequence[Path] = ()) -> Tensor:
    """Load reference images, float32 [N, C, H, W] in [0, 1].

    Args:
        name: "digits", "mnist", "cifar10", a folder of image files or an ``.npz`` file, both without labels. A folder
            with one of these names is ``./digits``.
        output: left out of a folder of reference images.
        targets: the files that will be written to ``output``.

    Raises:
        CommandError: there are no such images, they are damaged, or a later run would read the targets as references.
    """
    try:
        if name in _SPLITS:
            return load(name, _SPLITS[name]).images
        path = Path(name)
        if path.is_dir():
            if output is not None:
                check_apart(targets, output, path, "the folder of --reference")
            return _load_folder(path, output)
        if path.is_file() and path.suffix.lower() == ".npz":
            return read_unlabeled(path)
    except ValueError as error:
        raise CommandError(f"--reference: {error}") from error
    words = ", ".join(map(repr, _SPLITS))
    raise CommandError(f"--reference: expected {words}, a folder of images or an .npz file, got {name!r}")


def _load_folder(folder: Path, output: Path | None) -> Tensor:
    paths = [folder / name for name in find_images(folder, skip=output)]
    if not paths:
        raise CommandError(f"--reference: no image files ({FORMAT_NAMES}) in {folder}")
    return read_images(paths, common_channels(paths))
