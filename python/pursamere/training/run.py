"""Training from data to checkpoint."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pursamere._devices import own_device
from pursamere._extras import require
from pursamere._files import write_bytes
from pursamere._output import claim, require_own
from pursamere._validation import check_supported_device
from pursamere.models.checkpoints import save_checkpoint, storage_name
from pursamere.models.conv_classifier import ConvClassifier
from pursamere.models.edm_unet import EDMUNet

from .classifier import ClassifierTask, build_classifier
from .configuration import ClassifierConfiguration, DenoiserConfiguration, with_precision
from .data import describe_checkpoints, describe_data, load_data
from .data_parallel import Processes, processes
from .denoiser import DenoiserTask, build_denoiser
from .loop import Watcher, fit
from .state import read_record


@dataclass(frozen=True)
class TrainingResult:
    """The result of :func:`train`.

    Attributes:
        network: the averaged network, in evaluation mode with frozen parameters.
        history: one entry per validation.
        table: validation metrics of the final network, one row per noise level for a denoiser; empty in all processes
            but the first.
        folder: folder of the checkpoint.
    """

    network: EDMUNet | ConvClassifier
    history: list[dict[str, Any]]
    table: list[dict[str, float]]
    folder: Path


def train(
    settings: DenoiserConfiguration | ClassifierConfiguration,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    watcher: Watcher | None = None,
) -> TrainingResult:
    """Train a denoiser or a classifier, and write a checkpoint, ``history.json`` and pictures into ``folder``.

    An interrupted training resumes if called again with the same settings, data and folder; the path of the data may
    differ. Under ``torchrun``, the processes share every batch.

    Args:
        settings: settings of the training.
        folder: output folder, created if needed; must be empty or hold the same training.
        device: "cpu" or "cuda".
        dtype: storage dtype of the checkpoint's weights: float32, float16 or bfloat16.
        watcher: progress callbacks.

    Raises:
        MissingExtraError: a package of the extra ``train`` is not installed.
        ValueError: ``dtype`` or ``device`` is not supported, the data cannot be loaded, ``folder`` holds other files or
            a training with different settings or data, another process is writing to it, or several processes train
            with batch normalization.
        OSError: ``folder`` is not writable.
        RuntimeError: the loss is not finite.
    """
    require_own(folder, "train")
    folder, where = Path(folder), own_device(device)
    check_supported_device("device", where)
    record = read_record(folder) or {"settings": {}}
    settings = with_precision(settings, where, record["settings"].get("precision", "auto"))
    storage_name(dtype)
    for module in ("safetensors", "matplotlib.figure"):  # fail before training, not after it
        require(module, extra="train")
    watcher = watcher or Watcher()
    train_set, validation_set = load_data(settings.dataset, watcher.report)
    data = describe_data(train_set, validation_set) | describe_checkpoints(settings)
    shape = tuple(train_set.images.shape[1:])
    network: EDMUNet | ConvClassifier
    task: DenoiserTask | ClassifierTask
    if isinstance(settings, DenoiserConfiguration):
        network = build_denoiser(settings, shape)
        task = DenoiserTask(settings, train_set, validation_set, where)
    else:
        network = build_classifier(settings, shape, train_set.classes, train_set.images)
        task = ClassifierTask(settings, train_set, validation_set, where)
    with processes(where) as group:
        _check_processes(settings, group)
        with claim(folder, "train") if group.first else nullcontext():
            network, history = fit(network, task, settings, folder, where, group, watcher, data)
            table: list[dict[str, float]] = []
            if group.first:
                with torch.no_grad():
                    table = task.table(network)
                information = {"settings": settings.to_json(), "data": data, "seed": settings.seed, "validation": table}
                save_checkpoint(folder, network, dtype=dtype, information=information, overwrite=True)
                text = json.dumps(history, indent=2) + "\n"
                write_bytes(folder / "history.json", text.encode(), overwrite=True)
                _write_pictures(folder, task, network, history, table)
            group.wait()
    return TrainingResult(network, history, table, folder)


def _check_processes(settings: DenoiserConfiguration | ClassifierConfiguration, group: Processes) -> None:
    batch = isinstance(settings, ClassifierConfiguration) and settings.normalization == "batch"
    if batch and group.world_size > 1:  # each would normalize by its own rows
        raise ValueError(f"normalization must be 'group' in {group.world_size} processes, got 'batch'")


def _write_pictures(
    folder: Path,
    task: DenoiserTask | ClassifierTask,
    network: nn.Module,
    history: list[dict[str, Any]],
    table: list[dict[str, float]],
) -> None:
    from .pictures import draw_curves, draw_purifications

    pictures = {"curves.png": draw_curves(history, table)}
    if isinstance(task, DenoiserTask):
        pictures["purified.png"] = draw_purifications(network, task.validation)
    for name, content in pictures.items():
        write_bytes(folder / name, content, overwrite=True)
