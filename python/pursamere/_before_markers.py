"""Recognizes output folders of versions before folder markers, by the contents of their files."""

from __future__ import annotations

import json
from pathlib import Path

from pursamere._files import naming


def made_before_markers(folder: Path, command: str) -> bool:
    """Whether the files in a folder without a marker were written by ``command``.

    Checks contents, since names like ``config.json`` are common. Files that cannot be parsed don't count.

    Raises:
        OSError: a file cannot be read.
    """
    if command == "train":
        return _holds_a_training(folder)
    if command == "evaluate":
        return (folder / "units").is_dir() and _is_object_with(folder / "config.json", {"format", "protocol"})
    return _is_object_with(folder / "demo.json", {"format", "settings", "classifier_sha256", "results"})


def _holds_a_training(folder: Path) -> bool:
    from pursamere.training.state import FILE, read_progress  # slow to import

    try:
        return (folder / FILE).is_file() and read_progress(folder) is not None
    except ValueError:
        return False


def _is_object_with(file: Path, keys: set[str]) -> bool:
    if not file.is_file():  # a pipe would block
        return False
    try:
        with naming(file):
            content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and keys <= content.keys()
