"""The state of a training in one file, from which it goes on after it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._extras import require
from pursamere._files import write_bytes

FILE = "training.safetensors"


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
    safe_open = require("safetensors", extra="train").safe_open
    try:
        with safe_open(path, framework="pt") as content:
            return dict(json.loads(content.metadata()["progress"]))
    except Exception as error:  # safetensors has an error of its own, which is not to be imported by name here
        raise ValueError(f"{path} is damaged: {error}; remove it to train from the beginning") from error


def restore_state(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put a saved state back into modules and optimiser."""
    tensors: dict[str, Tensor] = require("safetensors.torch", extra="train").load_file(folder / FILE)
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
