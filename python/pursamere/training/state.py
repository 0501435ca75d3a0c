"""The state of a training in one file, from which it goes on after it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._extras import require
from pursamere._files import reading, write_bytes
from pursamere.checkpoints import CONFIGURATION, read_configuration

FILE = "training.safetensors"
_ADVICE = "remove it to train from the beginning"


def save_state(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write modules, optimiser and ``progress`` (values for JSON), replacing an earlier state at once."""
    save = require("safetensors.torch", extra="train").save
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in values.items()}
    content = save(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"progress": json.dumps(progress)}
    )
    write_bytes(folder / FILE, content, overwrite=True)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The ``progress`` of the state in a folder, or None if there is no state.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with reading(path, _ADVICE):
        with path.open("rb") as stream:  # not the tensors, which come after the header
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        progress = json.loads(header["__metadata__"]["progress"])
        _require_form(progress, {"step": int, "history": list, "losses": list})
        _require_record(progress)
    return dict(progress)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The ``settings`` and ``data`` of the training in a folder: those of its state, or else of its checkpoint.

    Returns:
        None if the folder holds neither. ``data`` may be missing, in folders by early versions.

    Raises:
        ValueError: the file is damaged.
    """
    if (progress := read_progress(folder)) is not None:
        return progress
    if not (folder / CONFIGURATION).exists():
        return None
    record = read_configuration(folder).get("training")
    with reading(folder / CONFIGURATION, _ADVICE):
        _require_record(record)
    return dict(record or {})


def restore_state(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put a saved state back into modules and optimiser.

    Raises:
        ValueError: the file is damaged.
    """
    with reading(folder / FILE, _ADVICE):
        # From bytes: safetensors opens no path that is not UTF-8.
        tensors: dict[str, Tensor] = require("safetensors.torch", extra="train").load((folder / FILE).read_bytes())
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, rest = key.partition("/")
            parts.setdefault(name, {})[rest] = value
        for name, module in modules.items():
            module.load_state_dict(parts[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            number, _, name = key.partition("/")
            moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _require_record(record: Any) -> None:
    _require_form(record, {"settings": dict})
    if record.get("data") is not None:
        _require_form(record, {"data": dict})
        _require_form(record["data"], {"classes": list, "sha256": str, "validation_sha256": str})


def _require_form(values: Any, form: dict[str, type]) -> None:
    for name, kind in form.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(f"it has no {name} as expected")
