"""Loading a data set by name or path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .dataset import Dataset
from .digits import open_digits
from .folder import open_folder
from .npz import open_npz
from .source import Source, to_images, to_labels, warn_unused
from .standard import open_cifar10, open_cifar10_jpeg, open_mnist

NAMED: dict[str, Callable[[], Source]] = {
    "digits": open_digits,
    "mnist": open_mnist,
    "cifar10": open_cifar10,
    "cifar10_jpeg": open_cifar10_jpeg,
}


def load(source: str | Path, split: str = "test") -> Dataset:
    """Load one split of a data set.

    Files are treated as untrusted: no code in them is executed, and sizes are checked before memory is allocated.

    Args:
        source: one of the following. Names take precedence over paths; use ``./digits`` or a ``Path`` for a path.

            - ``"digits"``: the 1,797 digits [1, 8, 8] of scikit-learn, split into 1,029, 256 and 512;
            - ``"mnist"`` [1, 28, 28]: ``mnist.npz`` or the IDX files, optionally in ``.gz``, in the folder given by the
              environment variable ``PURSAMERE_DATA``;
            - ``"cifar10"`` [3, 32, 32]: in the same folder, ``cifar10_jpeg.npz``, whose images are slightly lossy (the
              result is then named "cifar10_jpeg"), or the binary version, or the Python version that torchvision
              downloads to ``cifar-10-batches-py``; ``"cifar10_jpeg"``: the first only;
            - a folder with one subfolder of image files per class, or with such folders in subfolders ``train``,
              ``validation`` and ``test``; the files are PNG, JPEG, WebP, BMP, TIFF, GIF or PPM, with 8 bits per
              channel or 16-bit gray, neither animated nor transparent;
            - an ``.npz`` file with arrays ``images`` and ``labels``, or ``train_images``, ``train_labels`` and so on;
              images are uint8 [N, H, W] or [N, H, W, C], or float [N, C, H, W] in [0, 1].
        split: ``"train"``, ``"validation"`` or ``"test"``, if available. Built-in sets also have
            ``"train+validation"``, and "digits" also ``"all"``; "mnist" and "cifar10" use a fixed random 5,000
            training images for validation. A folder or file without splits is both ``"test"`` and ``"all"``.

    Returns:
        The images and labels in file order, which is by class for folders (see :meth:`Dataset.balanced`). A warning
        lists arrays and files, except hidden ones, that belong to no split.

    Raises:
        TypeError: ``source`` is neither a str nor a Path.
        ValueError: the data is missing, damaged or invalid; the message names the file or array.
    """
    with _errors_named(source):
        opened = _open(source)
        if split not in opened.parts:
            expected = ", ".join(map(repr, opened.parts))
            raise ValueError(f"split must be one of {expected}, got {split!r}")
        part = opened.parts[split]()
        return Dataset(opened.name, to_images(part.pixels), to_labels(part.labels), opened.classes)


def splits(source: str | Path) -> tuple[str, ...]:
    """Return the names of the splits of a data set. ``source`` and exceptions are those of :func:`load`."""
    with _errors_named(source):
        return tuple(_open(source).parts)


def representatives(data: Dataset, source: str | Path, count: int) -> Dataset:
    """Return a representative sample of ``count`` images (1 to N) of ``data``, which was loaded from ``source``.

    The first images of a built-in set, whose published order is mixed. Other sets may be sorted by class, so
    :meth:`Dataset.balanced` chooses among them.
    """
    return data.head(count) if is_built_in(source) else data.balanced(count)


def is_built_in(source: str | Path) -> bool:
    """Whether :func:`load` interprets ``source`` as the name of a built-in set rather than as a path."""
    return isinstance(source, str) and source in NAMED


@contextmanager
def _errors_named(source: object) -> Iterator[None]:
    """Check the type of ``source``, and add its name to errors raised in the block."""
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a str or a Path, got {type(source).__name__}")
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        raise ValueError(f"data set {str(source)!r}: {str(error) or type(error).__name__}") from error


def _open(source: str | Path) -> Source:
    opened = _find(source)
    warn_unused(source, opened.unused)
    return opened


def _find(source: str | Path) -> Source:
    if is_built_in(source):
        return NAMED[str(source)]()
    path = Path(source)
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return open_npz(path)
    names = ", ".join(map(repr, NAMED))
    found = "is neither" if path.exists() else "does not exist"
    raise ValueError(f"expected {names}, a folder of images or an .npz file, and {path} {found}")
