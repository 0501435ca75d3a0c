"""The state of a training in one file, from which it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._extras import require
from pursamere._files import reading, require_form, write_bytes
from pursamere._validation import check_integer, check_real
from pursamere.models.checkpoints import CONFIGURATION, read_configuration

FILE = "training.safetensors"
_ADVICE = "remove it to train from the beginning"


def save_state(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.AdamW, progress: dict[str, Any]
) -> None:
    """Save modules, optimizer and ``progress`` (JSON-serializable), atomically replacing an earlier state."""
    save = require("safetensors.torch", extra="train").save
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in values.items()}
    content = save(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"progress": json.dumps(progress)}
    )
    write_bytes(folder / FILE, content, overwrite=True)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Read the ``progress`` of the state in a folder, or return None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with reading(path, _ADVICE):
        with path.open("rb") as stream:  # the header only, not the tensors
            size = int.from_bytes(stream.read(8), "little")
            if size > path.stat().st_size:  # don't try to allocate that much
                raise ValueError(f"its header is cut short, {size} bytes were expected")
            header = json.loads(stream.read(size))
        progress = json.loads(header["__metadata__"]["progress"])
        _require_record(progress)
        _require_progress(progress)
    return dict(progress)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the ``settings`` and ``data`` of the training in a folder, from its state or else its checkpoint.

    Returns:
        None if the folder has neither. ``data`` is missing in folders by early versions.

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


def restore_state(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.AdamW) -> None:
    """Restore modules and optimizer from a saved state.

    Raises:
        ValueError: the file is damaged.
    """
    load = require("safetensors.torch", extra="train").load
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with reading(folder / FILE, _ADVICE):
        tensors: dict[str, Tensor] = load(
            (folder / FILE).read_bytes()
        )  # safetensors can't open paths that are not UTF-8
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, rest = key.partition("/")
            parts.setdefault(name, {})[rest] = value
        for name, module in modules.items():
            _require_like(name, parts[name], module.state_dict())
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            number, _, name = key.partition("/")
            moments.setdefault(int(number), {})[name] = value
        for index, values in moments.items():
            weight = parameters[index]
            like = {"step": torch.tensor(0.0), "exp_avg": weight, "exp_avg_sq": weight}
            _require_like(f"optimizer/{index}", values, like)
            # The fused optimizer walks the memory of weight and moments side by side, and the file has lost its format.
            for name in ("exp_avg", "exp_avg_sq"):
                values[name] = torch.empty_like(weight, device="cpu", requires_grad=False).copy_(values[name])
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _require_like(part: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise unless names, shapes and dtypes agree."""
    if different := found.keys() ^ expected.keys():
        what = "no" if min(different) in expected else "an unexpected"
        raise ValueError(f"it has {what} tensor {part}/{min(different)}")
    for name, like in expected.items():
        value = found[name]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise ValueError(
                f"tensor {part}/{name} is {value.dtype} {list(value.shape)}, expected {like.dtype} {list(like.shape)}"
            )


def _require_progress(progress: Any) -> None:
    require_form(progress, {"step": int, "history": list, "losses": list})
    steps = check_integer("steps", progress["settings"].get("steps"), low=1)
    check_integer("step", progress["step"], low=0, high=steps)
    for number, loss in enumerate(progress["losses"]):
        check_real(f"losses[{number}]", loss)
    for number, entry in enumerate(progress["history"]):
        require_form(entry, {"step": int, "loss": float})
        if entry.keys() != progress["history"][0].keys():
            raise ValueError(f"history[{number}] has other metrics than history[0]")
        for name, value in entry.items():
            check_real(f"history[{number}].{name}", value)


def _require_record(record: Any) -> None:
    require_form(record, {"settings": dict})
    if record.get("data") is not None:
        require_form(record, {"data": dict})
        require_form(record["data"], {"classes": list, "sha256": str, "validation_sha256": str})
