"""A run's folder: its configuration and the outcome of every unit, from which a killed run resumes.

config.json          what defines the run; another configuration is refused
environment.json     versions and machine of the process that began the run
units/*.json         outcome of a unit, which is done once this file exists
adversarial/*.safetensors   adversarial images of a unit, in the order of its rows
measurements.json    what was measured when all units were done: speed, memory and compression
outcomes.csv, summary.json, report.md, report.html, *.png   written when all units are done
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pursamere._extras import require
from pursamere._files import reading, require_form, write_bytes
from pursamere._validation import check_integer

from .measurements import Measurements
from .units import Outcome, Unit

__all__ = ["IncompleteRunError", "RunFolder", "recorded_threads"]

_MEANING = {
    "data.sha256": "data.sha256 (of images and labels)",
    "model.sha256": "model.sha256 (of parameters and settings)",
}
_RUN_AGAIN = "remove it, and the same command runs that part again"


class IncompleteRunError(RuntimeError):
    """One shard of a run is done, but others are not, so there is no result yet."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, claimed by the caller.
        config: what defines the run, as values for JSON.
        environment: versions and machine; recorded if the run is new.

    Raises:
        ValueError: the folder holds a run of another configuration, or a file of it is damaged.
    """

    def __init__(self, path: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = Path(path)
        self._safetensors = require("safetensors.torch", extra="evaluation")
        config = json.loads(json.dumps(config))
        file = self.path / "config.json"
        if not file.exists():
            if (self.path / "units").exists():
                raise ValueError(f"folder {self.path} holds a run without its config.json: choose another folder")
            _write_new(file, config)
        with reading(file, "choose another folder"):
            found = json.loads(file.read_bytes())
        difference = _first_difference(config, found)
        if difference is not None:
            key, asked, there = difference
            asked, there = _shown(asked, there)
            raise ValueError(
                f"folder {self.path} holds a run of another configuration: {_MEANING.get(key, key)} is {there} there, "
                f"and {asked} was asked for; choose another folder"
            )
        self.config = config
        for name in ("units", "adversarial"):
            (self.path / name).mkdir(exist_ok=True)
        if not (self.path / "environment.json").exists():
            _write_new(self.path / "environment.json", environment)
        self.environment = _read_environment(self.path / "environment.json")

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit has been run."""
        return self._unit_file(unit).exists()

    def save(self, unit: Unit, outcome: Outcome, adversarial: Tensor | None) -> None:
        """Save a unit. The JSON file is written last and atomically."""
        if adversarial is not None:
            content = self._safetensors.save({"images": adversarial.detach().cpu().contiguous()})
            write_bytes(self._tensor_file(unit), content, overwrite=True)
        write_bytes(self._unit_file(unit), _json(outcome.to_json()), overwrite=True)

    def load(self, unit: Unit) -> Outcome:
        """The outcome of a finished unit; ``ValueError`` if its file is damaged."""
        with reading(self._unit_file(unit), _RUN_AGAIN):
            return Outcome.from_json(json.loads(self._unit_file(unit).read_bytes()), len(unit.rows))

    def has_adversarial(self, unit: Unit) -> bool:
        """Whether a unit's adversarial images were kept."""
        return self._tensor_file(unit).exists()

    def adversarial(self, unit: Unit) -> Tensor:
        """The adversarial images of a finished unit, [n, C, H, W].

        Raises:
            FileNotFoundError: they were not kept.
            ValueError: the file is damaged.
        """
        with reading(self._tensor_file(unit), f"{_RUN_AGAIN}, once its file in units is removed too"):
            # From bytes: safetensors opens no path that is not UTF-8.
            images: Tensor = self._safetensors.load(self._tensor_file(unit).read_bytes())["images"]
            if len(images) != len(unit.rows):
                raise ValueError(f"it has {len(images)} images, expected {len(unit.rows)}")
            return images

    def measured(self, measure: Callable[[], Measurements]) -> Measurements:
        """What ``measure`` returned when the run was first complete; ``ValueError`` if its file is damaged."""
        file = self.path / "measurements.json"
        if not file.exists():
            _write_new(file, measure().to_json())
        with reading(file, _RUN_AGAIN):
            return Measurements.from_json(json.loads(file.read_bytes()))

    def write(self, name: str, content: bytes) -> None:
        """Write one of the result files."""
        write_bytes(self.path / name, content, overwrite=True)

    def _tensor_file(self, unit: Unit) -> Path:
        return self.path / "adversarial" / f"{unit.name}.safetensors"

    def _unit_file(self, unit: Unit) -> Path:
        return self.path / "units" / f"{unit.name}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_new(file: Path, value: Any) -> None:
    """Write a file, unless another process of the same run has written it meanwhile."""
    try:
        write_bytes(file, _json(value), overwrite=False)
    except FileExistsError:
        return


def recorded_threads(path: Path) -> int | None:
    """The CPU threads that the run in a folder began with; ``None`` if there is no run."""
    file = Path(path) / "environment.json"
    return _read_environment(file)["threads"] if file.exists() else None


def _read_environment(file: Path) -> dict[str, Any]:
    with reading(file, "restore it, or choose another folder"):
        environment = json.loads(file.read_bytes())
        # What the report reads.
        require_form(environment, {"versions": dict, "platform": str, "machine": str, "device": str, "threads": int})
        check_integer("threads", environment["threads"], low=1)
        return dict(environment)


def _first_difference(asked: Any, there: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Path of the first value that differs, and both values."""
    if isinstance(asked, dict) and isinstance(there, dict):
        for name in sorted({*asked, *there}, key=lambda name: (name != "name", name)):  # a name says most
            path = f"{key}.{name}" if key else name
            difference = _first_difference(asked.get(name), there.get(name), path)
            if difference is not None:
                return difference
        return None
    if isinstance(asked, list) and isinstance(there, list) and len(asked) == len(there):
        for number, (one, other) in enumerate(zip(asked, there, strict=True)):
            difference = _first_difference(one, other, f"{key}[{number}]")
            if difference is not None:
                return difference
        return None
    return None if asked == there else (key or "it", asked, there)


def _shown(asked: Any, there: Any) -> list[str]:
    """The values as JSON, of long ones the part around the first difference."""
    texts = [json.dumps(asked), json.dumps(there)]
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((place for place, (one, other) in pairs if one != other), min(map(len, texts))) - 30)
    if max(map(len, texts)) <= 80:
        return texts
    parts = [text[start : start + 80] for text in texts]
    return [
        "..." * (start > 0) + part + "..." * (start + 80 < len(text)) for part, text in zip(parts, texts, strict=True)
    ]
