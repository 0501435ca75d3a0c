"""Output folders: each belongs to one command, and only one process writes to it at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pursamere._before_markers import made_before_markers
from pursamere._files import naming

MARKER = ".pursamere"  # names the command that owns the folder; locked while that command writes
_COMMANDS = ("train", "evaluate", "demo")
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK  # don't follow links, and don't block on pipes


def require_writable(folder: str | Path) -> None:
    """Raise unless ``folder`` is writable or can be created. Creates nothing.

    Raises:
        ValueError: ``folder`` is an empty string.
        OSError: the folder, or its nearest existing parent, is not a folder or not writable.
    """
    if not os.fspath(folder):
        raise ValueError("the output folder must have a name, got an empty string")
    existing = Path(folder)
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        what = "a broken link" if not existing.exists() else "not a folder"
        raise NotADirectoryError(f"cannot write into {folder}: {existing} is {what}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into {folder}: {existing} is not writable")


def require_own(folder: str | Path, command: str) -> None:
    """Raise unless ``folder`` is new, empty or owned by ``command``.

    Creates nothing. Hidden files don't count, except for an invalid ``MARKER``.

    Raises:
        ValueError: the folder holds other files, or ``folder`` is an empty string.
        OSError: see :func:`require_writable`.
    """
    require_writable(folder)
    folder = Path(folder)
    if not folder.is_dir():
        return
    # List files before reading the marker: a process that claims the folder writes the marker first.
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    owner = _owner(folder)
    if files and owner != command and (owner or not made_before_markers(folder, command)):
        raise ValueError(f"{folder} was not created by pursamere {command} and holds {files[0]}: choose another folder")


@contextmanager
def claim(folder: str | Path, command: str, *, shared: bool = False) -> Iterator[None]:
    """Create ``folder`` if needed, mark it as owned by ``command``, and lock it for the block.

    The system releases the lock when the process ends. File systems without locks are not locked.

    Args:
        folder: output folder.
        command: owner of the folder, see :func:`require_own`.
        shared: whether other processes may hold a shared claim at the same time.

    Raises:
        ValueError: the folder holds other files, or another process is writing to it.
        OSError: the folder can't be created or written.
    """
    require_own(folder, command)
    folder = Path(folder)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open_marker(folder, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing to {folder}: wait for it, or choose another folder") from None
        except OSError:
            pass  # the file system has no locks
        require_own(folder, command)  # check again: another process may have used the folder meanwhile
        owner = _read_marker(folder, descriptor)
        if owner != command:
            with naming(folder / MARKER):
                if owner:  # otherwise another shared claim may have written it already
                    os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _content(command), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(folder: Path) -> str:
    """Return the command that owns a folder, or an empty string."""
    try:
        descriptor = _open_marker(folder, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        return _read_marker(folder, descriptor)
    finally:
        os.close(descriptor)


def _open_marker(folder: Path, flags: int) -> int:
    try:
        with naming(folder / MARKER):
            return os.open(folder / MARKER, flags | _FLAGS, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            raise _not_a_marker(folder) from None
        raise


def _read_marker(folder: Path, descriptor: int) -> str:
    """Return the command named in an open marker, or an empty string if it is empty."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _not_a_marker(folder)
    with naming(folder / MARKER):
        content = os.pread(descriptor, 80, 0)  # longer than any marker
    if content not in (b"", *(_content(command) for command in _COMMANDS)):
        raise _not_a_marker(folder)
    return content.decode().strip()


def _content(command: str) -> bytes:
    return f"{command}\n".encode()


def _not_a_marker(folder: Path) -> ValueError:
    return ValueError(f"{folder / MARKER} is not a marker written by pursamere: choose another folder")
