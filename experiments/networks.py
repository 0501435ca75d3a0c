"""Classifiers that an experiment trains for itself, because they are cheap and don't ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locks import lock

from pursamere._threads import cpu_threads
from pursamere.training import ClassifierConfiguration, Watcher, configuration, train


@dataclass(frozen=True)
class Training:
    """The settings of ``pursamere train classifier``, and the training whose weights it starts from."""

    name: str
    settings: Mapping[str, Any]
    initial: Training | None = None

    def checkpoint(self, folder: Path, device: Any = "cpu", threads: int = 1) -> Path:
        """Train, or finish the training, and return the checkpoint's folder; other processes wait meanwhile.

        The weights depend on the number of CPU threads.
        """
        settings = dict(self.settings)
        if self.initial is not None:
            settings["initial"] = str(self.initial.checkpoint(folder, device, threads))
        with lock(folder / ".locks" / self.name, wait=True), cpu_threads(threads):
            watcher = Watcher(report=lambda text: print(f"{self.name}: {text}", flush=True))
            train(configuration(ClassifierConfiguration, settings), folder / self.name, device=device, watcher=watcher)
        return folder / self.name
