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
    file = folder / "training.safetensors"
    if not file.is_file():  # a pipe would block
        return False
    try:
        with naming(file), file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                return False
            progress = json.loads(json.loads(stream.read(size))["__metadata__"]["progress"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False
    return isinstance(progress, dict) and {"settings", "step", "history", "losses"} <= progress.keys()


def _is_object_with(file: Path, keys: set[str]) -> bool:
    if not file.is_file():  # a pipe would block
        return False
    try:
        with naming(file):
            content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and keys <= content.keys()
