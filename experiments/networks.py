"""Classifiers that an experiment trains for itself, because they are cheap and don't ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from locks import lock

from pursamere._threads import cpu_threads
from pursamere.models.checkpoints import CONFIGURATION, WEIGHTS, read_configuration
from pursamere.training import ClassifierConfiguration, Watcher, configuration, train
from pursamere.training.configuration import CHECKPOINTS, with_precision
from pursamere.training.data import describe_checkpoints, describe_data, load_data


@dataclass(frozen=True)
class Training:
    """The settings of ``pursamere train classifier``, and the training whose weights it starts from."""

    name: str
    settings: Mapping[str, Any]
    initial: Training | None = None

    def checkpoint(self, folder: Path, device: Any = "cpu", threads: int = 1) -> Path:
        """Train unless that is done, and return the checkpoint's folder; other processes wait meanwhile.

        The weights depend on the number of CPU threads.
        """
        settings = dict(self.settings)
        if self.initial is not None:
            settings["initial"] = str(self.initial.checkpoint(folder, device, threads))
        with lock(folder / ".locks" / self.name, wait=True), cpu_threads(threads):
            chosen = with_precision(configuration(ClassifierConfiguration, settings), torch.device(device))
            if not _is_trained(folder / self.name, chosen):
                watcher = Watcher(report=lambda text: print(f"{self.name}: {text}", flush=True))
                train(chosen, folder / self.name, device=device, watcher=watcher)
        return folder / self.name


def _is_trained(folder: Path, settings: ClassifierConfiguration) -> bool:
    """Whether the folder has the checkpoint of a training with these settings, data and initial weights."""
    if not (folder / CONFIGURATION).exists() or not (folder / WEIGHTS).exists():
        return False
    record = read_configuration(folder).get("training") or {}
    data = describe_data(*load_data(settings.dataset, lambda _: None)) | describe_checkpoints(settings)
    # Checkpoints are compared by content, not by path.
    found, wanted = (
        {**each, **dict.fromkeys(CHECKPOINTS)} for each in (record.get("settings", {}), settings.to_json())
    )
    return found == wanted and record.get("data") == data
