"""Atomic file writes, and errors that name the file."""

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
    """Write to a temporary file beside ``path``, and rename it to ``path`` if the block succeeds.

    After an error, the temporary file is removed and ``path`` is unchanged. If ``path`` exists, or another process
    creates it in the meantime, raises ``FileExistsError`` unless ``overwrite``. A symbolic link at ``path`` is
    replaced, not followed.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    # Not tempfile, which ignores the umask and creates files with mode 0600.
    # The name omits the target's name, which may already have the maximum length.
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
    """Turn errors about the content of ``path`` into a ``ValueError`` that names it.

    Unrelated errors, such as running out of memory or a missing package, propagate unchanged.
    """
    try:
        with naming(path):
            yield
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # safetensors raises its own error type
        # RuntimeErrors are PyTorch's (out of memory, for example); deeply nested JSON raises RecursionError.
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged: {reason}; {advice}") from error


def require_form(values: Any, form: Mapping[str, type]) -> None:
    """Raise a ``ValueError`` unless ``values``, read from JSON, is an object with these names and types."""
    for name, kind in form.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(f"it has no valid {name}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make ``OSError`` name ``path``: errors of reads and writes name no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file with :func:`atomic_writer`."""
    with atomic_writer(path, overwrite=overwrite) as stream:
        stream.write(content)


def _link(temporary: Path, path: Path) -> None:
    """Hard-link ``temporary`` to ``path``, which, unlike a rename, fails if ``path`` exists."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise FileExistsError(f"{path} exists") from None
    except OSError:
        # For file systems without hard links: check right before the rename.
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists") from None
        os.replace(temporary, path)
