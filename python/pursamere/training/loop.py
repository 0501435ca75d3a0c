"""The training loop: AdamW with warm-up and cosine decay, gradient clipping, averaged weights, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pursamere.datasets.loading import is_built_in

from .configuration import CHECKPOINTS, TrainingConfiguration
from .data_parallel import Processes
from .order import DataOrder, noise_generator
from .state import read_progress, read_record, restore_state, save_state

_Network = TypeVar("_Network", bound=nn.Module)


class Task(Protocol):
    """Data, loss and validation of a training."""

    size: int  # number of training images

    def losses(self, network: Any, rows: Tensor, mine: slice, generator: torch.Generator) -> Tensor:
        """Return the losses of rows ``mine`` of the batch ``rows``. Noise is drawn for the whole batch."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return metrics by name for a network in evaluation mode."""
        ...


@dataclass(frozen=True)
class Watcher:
    """Progress callbacks.

    Attributes:
        advance: called with the number of steps completed since the last call.
        report: called with a line of text after every validation.
    """

    advance: Callable[[int], None] = field(default=lambda _: None)
    report: Callable[[str], None] = field(default=lambda _: None)


def fit(
    network: _Network,
    task: Task,
    settings: TrainingConfiguration,
    folder: Path,
    device: torch.device,
    group: Processes,
    watcher: Watcher,
    data: Mapping[str, Any],
) -> tuple[_Network, list[dict[str, Any]]]:
    """Train, resuming from the state in ``folder``; return the averaged network in evaluation mode and the history.

    The history has one entry per validation: the step, the mean training loss since the previous entry, and metrics. On
    a CPU, the same settings, data and number of threads give the same bits whether or not training was interrupted.
    ``settings.precision`` must not be "auto". ``data`` is the result of ``describe_data`` for the task's data.

    Raises:
        ValueError: the state or the checkpoint in ``folder`` is damaged or belongs to other settings or data.
        RuntimeError: the loss is not finite.
    """
    low = settings.precision == "bfloat16"
    network.to(device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    with torch.device(
        "cpu"
    ):  # its counter is on the default device; reading it from a GPU would synchronize every step
        average = AveragedModel(network, multi_avg_fn=_moving_average(settings.ema_decay), use_buffers=True)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=True)
    modules: dict[str, nn.Module] = {"network": network, "average": average}
    start, history, losses = 0, [], []
    if (record := read_record(folder)) is not None:
        _check_same_settings(record["settings"], settings, folder)
        _check_same_data(record.get("data"), data, folder)
    if (progress := read_progress(folder)) is not None:
        restore_state(folder, modules, optimizer)
        start, history, losses = progress["step"], progress["history"], progress["losses"]
        watcher.advance(start)
    order = DataOrder(task.size, settings.batch_size, settings.seed)
    began = time.monotonic()
    for step in range(start, settings.steps):
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad(set_to_none=False)
        mine = group.rows(settings.batch_size)
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
            parts = task.losses(network, order.batch(step), mine, noise_generator(settings.seed, step, device))
            loss = parts.sum() / settings.batch_size
        loss.backward()
        total = loss.detach()
        group.add_up([total, *(p.grad for p in parameters if p.grad is not None)])
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        average.update_parameters(network)
        losses.append(total)
        done = step + 1
        watcher.advance(1)
        if done % settings.validate_every == 0 or done == settings.steps:
            mean = float(torch.stack([torch.as_tensor(v, device=device) for v in losses]).mean())
            losses = []
            if not math.isfinite(mean):
                raise RuntimeError(f"the training loss is {mean} before step {done}; a lower learning_rate may help")
            if group.first:
                history.append({"step": done, "loss": mean, **_validate(task, average.module)})
                left = (time.monotonic() - began) / (done - start) * (settings.steps - done)
                watcher.report(_line(history[-1], left))
        if group.first and (done % settings.save_every == 0 or done == settings.steps):
            losses = [float(v) for v in losses]
            now = {"step": done, "history": history, "losses": losses}
            save_state(folder, modules, optimizer, {**now, "settings": settings.to_json(), "data": dict(data)})
    group.wait()
    result: Any = average.module  # a deep copy, so of the network's type
    return result.eval().requires_grad_(False), history


def learning_rate(step: int, settings: TrainingConfiguration) -> float:
    """Linear warm-up over ``warmup_steps``, then cosine decay to zero."""
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    fraction = max(0, step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * fraction))


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average with a lower decay in the first steps, so that initial weights are forgotten."""

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Any) -> None:
        seen = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + seen) / (10 + seen)))

    return update


def _validate(task: Task, network: nn.Module) -> dict[str, float]:
    network.eval()
    with torch.no_grad():
        return task.validate(network)


def _check_same_settings(before: dict[str, Any], settings: TrainingConfiguration, folder: Path) -> None:
    now = settings.to_json()
    names = set(before) | set(now)
    if other := names - set(before) & set(now):
        raise ValueError(
            f"{folder} holds a different kind of training, or one by another version of pursamere (the setting "
            f"{min(other)} differs): choose another folder, or remove it"
        )
    # Data is compared by content, not by path; but built-in sets choose validation images differently than files.
    if is_built_in(before.get("dataset", "")) == is_built_in(settings.dataset):
        names -= {"dataset"}
    if before.get("precision") == "auto":  # in records by early versions, which don't say what it meant
        names -= {"precision"}
    # So are checkpoints.
    names -= {name for name in CHECKPOINTS if before.get(name) and now.get(name)}
    for name in sorted(names):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} holds a training with {name}={before.get(name)!r}, not {now.get(name)!r}: choose another "
                f"folder, or remove it"
            )


def _check_same_data(before: Mapping[str, Any] | None, data: Mapping[str, Any], folder: Path) -> None:
    if before is None:
        raise ValueError(
            f"{folder} holds a training by an earlier version of pursamere, which did not record its data: resume it "
            f"with that version, choose another folder, or remove it"
        )
    other = f"{folder} holds a training on data different from {data['name']!r}"
    advice = "choose another folder, or remove it"
    for number, (name, now) in enumerate(zip_longest(before["classes"], data["classes"])):
        if name != now:
            raise ValueError(f"{other}: its class number {number} is {name!r}, not {now!r}; {advice}")
    for name in CHECKPOINTS:
        if before.get(name) != data.get(name):
            raise ValueError(f"{folder} holds a training with another checkpoint for {name}; {advice}")
    for key, part in (("sha256", "training"), ("validation_sha256", "validation")):
        if before[key] != data[key]:
            raise ValueError(
                f"{other}: the SHA-256 of its {part} images and labels begins with {before[key][:12]}, not "
                f"{data[key][:12]}; {advice}"
            )


def _line(entry: dict[str, Any], seconds_left: float) -> str:
    figures = ", ".join(f"{name} {value:.5g}" for name, value in entry.items() if name != "step")
    return f"step {entry['step']}: {figures}; {seconds_left / 60:.1f} min left"
