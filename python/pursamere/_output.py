"""Output folders: a command writes into a folder of its own only, and one process at a time."""

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

MARKER = ".pursamere"  # says which command a folder belongs to, and is locked while that command writes
_COMMANDS = ("train", "evaluate", "demo")
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK  # neither write through a link nor wait for a pipe's other end


def require_writable(folder: str | Path) -> None:
    """Raise unless files can be written into ``folder``, or the folder can be made. Nothing is made.

    Raises:
        ValueError: ``folder`` is empty text.
        OSError: the folder, or the nearest one above it that exists, is not a folder or can't be written.
    """
    if not os.fspath(folder):
        raise ValueError("the output folder must have a name, got an empty one")
    existing = Path(folder)
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        what = "a link to nothing" if not existing.exists() else "not a folder"
        raise NotADirectoryError(f"cannot write into {folder}: {existing} is {what}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into {folder}: {existing} is not writable")


def require_own(folder: str | Path, command: str) -> None:
    """Raise unless ``command`` may write into ``folder``: one that it made before, an empty one, or a new one.

    Nothing is made. Files whose names begin with a dot don't count, except for a ``MARKER`` that no command wrote.

    Raises:
        ValueError: the folder holds files of something else, or ``folder`` is empty text.
        OSError: see :func:`require_writable`.
    """
    require_writable(folder)
    folder = Path(folder)
    if not folder.is_dir():
        return
    # The files are listed before the marker is read: a process that has just claimed the folder wrote the marker first.
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    owner = _owner(folder)
    if files and owner != command and (owner or not made_before_markers(folder, command)):
        raise ValueError(f"{folder} is not marked as pursamere {command}'s and holds {files[0]}: choose another folder")


@contextmanager
def claim(folder: str | Path, command: str, *, shared: bool = False) -> Iterator[None]:
    """Make ``folder`` if needed, mark it as the folder of ``command``, and lock it for the block.

    The lock ends with the process, however that ends. On file systems without locks there is none.

    Args:
        folder: where the block writes.
        command: what the folder must belong to, see :func:`require_own`.
        shared: whether other processes may hold a shared claim at the same time.

    Raises:
        ValueError: the folder holds files of something else, or another process is writing into it.
        OSError: the folder can't be made or written.
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
            raise ValueError(
                f"another process is writing into {folder}: wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # no locks here
        require_own(folder, command)  # again: another process may have claimed the folder and be done
        owner = _read_marker(folder, descriptor)
        if owner != command:
            with naming(folder / MARKER):
                if owner:  # else another process that shares the claim may have written it by now
                    os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _content(command), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(folder: Path) -> str:
    """The command that marked a folder, empty if none did."""
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
    """The command named in an open marker, empty if it was not written yet."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _not_a_marker(folder)
    with naming(folder / MARKER):
        content = os.pread(descriptor, 80, 0)  # more than any marker has
    if content not in (b"", *(_content(command) for command in _COMMANDS)):
        raise _not_a_marker(folder)
    return content.decode().strip()


def _content(command: str) -> bytes:
    return f"{command}\n".encode()


def _not_a_marker(folder: Path) -> ValueError:
    return ValueError(
        f"{folder / MARKER} was not written by pursamere, which keeps the name of a command in a regular file of that "
        f"name: choose another folder"
    )
