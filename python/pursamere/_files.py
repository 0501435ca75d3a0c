"""Writing files so that a reader, or an interrupted run, never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def atomic_writer(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for writing, and give it that name once the block has ended without error.

    After an error the temporary file is removed and ``path`` is as it was. A ``path`` that exists raises
    ``FileExistsError`` unless ``overwrite``, also when another process makes it in the meantime. A symbolic link at
    ``path`` is replaced, never followed.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    # Not tempfile: its files are private (0600) whatever the umask says, and keep that mode when renamed.
    # The name does not contain the target's, which may be as long as the file system allows.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    with naming(path):
        descriptor = os.open(temporary, _FLAGS, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                os.replace(temporary, path)
            else:
                _link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


@contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Errors while the block parses and checks ``path`` name it; those about its content become a ``ValueError``.

    Errors that other things cause, like too little memory or a missing package, pass unchanged.
    """
    try:
        with naming(path):
            yield
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # safetensors, for one, has an error of its own that is no built-in type
        # PyTorch's errors are RuntimeErrors, those of memory among them; deeply nested JSON is a RecursionError.
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged: {reason}; {advice}") from error


def require_form(values: Any, form: Mapping[str, type]) -> None:
    """Raise a ``ValueError`` unless ``values``, read from JSON, is an object with values of these names and types."""
    for name, kind in form.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(f"it has no {name} as expected")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system name ``path``: those of reads and writes name no file, some a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a whole file by way of ``atomic_writer``."""
    with atomic_writer(path, overwrite=overwrite) as stream:
        stream.write(content)


def _link(temporary: Path, path: Path) -> None:
    """Give ``temporary`` a second name, failing if ``path`` exists: unlike a rename, a hard link never replaces."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise FileExistsError(f"{path} exists") from None
    except OSError:
        # Some file systems have no hard links; the check just before the rename is the best there is.
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists") from None
        os.replace(temporary, path)
