"""Run the protocol on a model and a dataset, into a folder that a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pursamere._environment import package_version, versions
from pursamere._extras import require
from pursamere._output import claim, require_own
from pursamere._threads import cpu_threads
from pursamere._validation import check_choice, check_integer, check_positive
from pursamere.attacks._balls import check_labels, check_problem
from pursamere.attacks._pyautoattack import check_size
from pursamere.evaluation.classes import find_class_names
from pursamere.evaluation.determinism import CHECKED, check_deterministic
from pursamere.evaluation.environment import describe_environment
from pursamere.evaluation.folder import IncompleteRunError, RunFolder
from pursamere.evaluation.plan import cost_of, make_plan, steps_of
from pursamere.evaluation.protocol import CLEAN, PRESETS, Protocol
from pursamere.evaluation.result import Result
from pursamere.evaluation.summary import summarize, summary_json
from pursamere.evaluation.target import Model, Target
from pursamere.evaluation.units import Unit, run_unit

_FORMAT = 2


_PATIENCE = 60.0  # seconds without news from other processes before a warning


Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


def evaluate(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    folder: str | Path,
    eps: float | Iterable[float],
    norm: str = "linf",
    preset: str | Protocol = "standard",
    seed: int = 0,
    chunk: int = 128,
    micro_batch: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] | None = None,
    data: str = "",
    class_names: Sequence[str] | None = None,
    keep_adversarial: bool = True,
    bar: Bar = lambda total, description: nullcontext(lambda _: None),
) -> Result:
    """Attack a model with everything a protocol has, and return per-sample outcomes, worst case and masking checks.

    Whatever was finished is in ``folder``: the same call goes on where a killed one was, and ends with the same bytes
    of ``outcomes.csv``. Several processes may share a run. Under ``torchrun`` (``RANK`` and ``WORLD_SIZE`` in the
    environment) each takes its share, waits for the others, and returns the result, which rank 0 writes; to evaluate in
    one of the processes only, pass ``shard=(0, 1)``. Otherwise give
    each a ``shard``; the one that finds all units done writes the result.

    Args:
        model: a :class:`pursamere.PurifiedClassifier` in evaluation mode, attacked through every gradient it has, or
            any callable from images [N, C, H, W] to logits [N, classes], attacked through its own. The former may be of
            a subclass and have hooks: attacks see a copy of it with another gradient, which must have its logits.
        images: [B, C, H, W] in [0, 1], at least one, on the device to work on. Some attacks look at the first ones
            only, so images sorted by class must be mixed, see :meth:`pursamere.datasets.Dataset.balanced`.
        labels: [B], int64.
        folder: made if it is not there; must be empty or hold a run of the same configuration.
        eps: radius or radii of the attacks, in pixel units.
        norm: "linf" or "l2".
        preset: "quick", "standard", "full", or a :class:`Protocol`.
        seed: of the attacks' random starts.
        chunk: samples attacked together, whose activations may be in memory at once; part of what defines a run, and
            what is divided among processes.
        micro_batch: batch size of models that are no ``PurifiedClassifier``.
        threads: CPU threads while it runs, by default what PyTorch has; a run that is gone on with, or shared, keeps
            those it began with, since last bits may depend on them.
        shard: (i, n): run the chunks whose number is i modulo n, i in [0, n).
        data: what the images are, for the report.
        class_names: what the labels 0, 1, ... stand for, one name for each logit; by default ``model.class_names``,
            where there are any. A model that has them must have these ones.
        keep_adversarial: keep the adversarial images as safetensors files.
        bar: ``bar(total, description)`` shows a progress bar, and its block gets a function that advances it.

    Returns:
        The result.

    Raises:
        IncompleteRunError: the given ``shard`` is done, and others are not.
        MissingExtraError: a package of the extra ``evaluation`` is not installed.
        TypeError: an argument of the wrong type, the model does not return a floating tensor, or its ``forward`` was
            replaced on the instance.
        ValueError: an argument out of its range, ``folder`` holds another run or other files or another process is
            writing into it (processes that share the run excepted), the model does not return logits, or a
            copy of it with another gradient is another model.
        RuntimeError: the model is not deterministic; the message shows two logits that differ. Or it is NaN or infinite
            on every image. Or autograd's derivative of its denoiser is wrong, see
            :meth:`pursamere.IterativePurifier.check_derivative`.
    """
    require_own(folder, "evaluate")
    target = Target(model, check_integer("micro_batch", micro_batch, low=1))
    images = check_problem(images, labels)
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none")
    images, labels = images.detach(), labels.detach()
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images must be float32 or float64, since half types round the ball away, got {images.dtype}")
    given: Any = [eps] if isinstance(eps, Real) else eps
    radii = tuple(check_positive("eps", radius) for radius in given)
    if not radii or len(set(radii)) < len(radii):
        raise ValueError(f"eps must be at least one radius, and different ones, got {radii}")
    check_choice("norm", norm, ("linf", "l2"))
    protocol = preset if isinstance(preset, Protocol) else PRESETS[check_choice("preset", preset, PRESETS)]
    require_packages(protocol)
    if any(attack.kind in ("autoattack", "square") for attack in protocol.attacks):
        check_size(images, norm)
    check_integer("seed", seed, low=0)
    check_integer("chunk", chunk, low=1)
    number, count = _shard(shard)
    classes = target.count_classes(images)
    check_labels(labels, classes)
    names = find_class_names(model, class_names, classes)
    if not target.is_random:
        check_deterministic(target.logits, images)
    gradients = sorted({"exact", *(attack.gradient for attack in protocol.attacks)})
    target.check_attackable(images[:CHECKED], gradients, seed)
    derivative = target.check_derivative(protocol.attacks, images)
    with cpu_threads(1):  # the last bits may depend on it
        behavior = target.behavior_sha256(images[:CHECKED], seed)
    config = {
        "format": _FORMAT,
        "data": {
            "name": data,
            "sha256": _sha256(images, labels),
            "samples": len(images),
            "classes": names,
            "per_class": labels.bincount(minlength=classes).tolist(),
        },
        "model": {
            "description": target.description,
            "random": target.is_random,
            "names_classes": getattr(model, "class_names", None) is not None,
            "sha256": target.sha256(),
            "logits_sha256": behavior,
        },
        "versions": {**versions(), "pyautoattack": package_version("pyautoattack")},
        "device": images.device.type,
        "norm": norm,
        "eps": list(radii),
        "seed": seed,
        "chunk": chunk,
        "micro_batch": micro_batch,
        "protocol": asdict(protocol),
    }
    with claim(folder, "evaluate", shared=count > 1):
        run = RunFolder(Path(folder), config, describe_environment(images.device, threads))
        count_of_threads, asked = run.environment["threads"], threads or torch.get_num_threads()
        if count_of_threads != asked:
            told = f"evaluating with {count_of_threads} CPU threads, as the run began, not {asked}"
            warnings.warn(told, stacklevel=2)
        with cpu_threads(count_of_threads):
            plan = make_plan(protocol, target, radii, norm, len(images), chunk, classes)
            mine = [units for i, units in enumerate(plan.chunks) if i % count == number]
            total = sum(cost_of(unit) for units in mine for unit in units)
            with bar(total, f"{protocol.name} evaluation") as advance:
                for units in mine:
                    _run_chunk(run, target, units, images, labels, norm, seed, keep_adversarial, advance)
            units = [unit for units in plan.chunks for unit in units]
            missing = [unit for unit in units if not run.is_done(unit)]
            if shard is None:
                _wait_for(missing, run, bar)
            elif missing:
                told = f"shard {number}/{count} is done; {len(missing)} of {len(units)} units are missing"
                raise IncompleteRunError(told)
            result = summarize(run, units, labels, radii, norm, plan.skipped, target, images, derivative)
        if shard is not None or number == 0:
            write_summary(run, result, units, target, images, labels)
        return result


def require_packages(protocol: Protocol) -> None:
    """Raise a ``MissingExtraError`` before hours of work rather than after them."""
    from_package = any(attack.kind in ("apgd", "autoattack", "square") for attack in protocol.attacks)
    for module in ("safetensors", "matplotlib.figure", "markdown", *(["pyautoattack"] if from_package else [])):
        require(module, extra="evaluation")


def write_summary(
    run: RunFolder, result: Result, units: Sequence[Unit], target: Target, images: Tensor, labels: Tensor
) -> None:
    """Write the summary, and the report in Markdown and HTML with its pictures.

    Args:
        run: the folder.
        result: what to tell.
        units: all of the run's, done.
        target: what was attacked, for the picture grid.
        images: [B, C, H, W] in [0, 1], all that were evaluated.
        labels: [B], int64.
    """
    from pursamere.report.html import html_page
    from pursamere.report.markdown import ACCURACY, BARS, GRID, LOSS, markdown_report, title
    from pursamere.report.pictures import picture_grid
    from pursamere.report.plots import accuracy_plot, bar_plot, loss_plot

    run.write("summary.json", (json.dumps(summary_json(result), indent=1) + "\n").encode())
    drawn = {
        ACCURACY: accuracy_plot(result),
        BARS: bar_plot(result),
        LOSS: loss_plot(result),
        GRID: picture_grid(result, run, units, target, images, labels),
    }
    pictures = {name: content for name, content in drawn.items() if content is not None}
    for name, content in pictures.items():
        run.write(name, content)
    kept = next((unit.name for unit in units if run.has_adversarial(unit)), None)
    text = markdown_report(result, pictures, kept)
    run.write("report.md", text.encode())
    run.write("report.html", html_page(title(result), text, pictures).encode())


def _wait_for(missing: list[Unit], run: RunFolder, bar: Bar) -> None:
    """Wait until the other processes have run their units; torchrun ends all if one fails."""
    if not missing:
        return
    last, warned = time.monotonic(), False
    with bar(len(missing), "waiting for other processes") as advance:
        while missing:
            time.sleep(0.5)
            still = [unit for unit in missing if not run.is_done(unit)]
            if len(still) < len(missing):
                advance(len(missing) - len(still))
                missing, last = still, time.monotonic()
            elif not warned and time.monotonic() - last > _PATIENCE:
                warned = True
                warnings.warn(
                    f"RANK is {os.environ.get('RANK')} and WORLD_SIZE {os.environ.get('WORLD_SIZE')}, so other "
                    f"processes are expected to run {len(missing)} units, and none came in {_PATIENCE:.0f} s. To "
                    "evaluate in this process alone, pass shard=(0, 1)",
                    stacklevel=3,
                )


def _run_chunk(
    run: RunFolder,
    target: Target,
    units: list[Unit],
    images: Tensor,
    labels: Tensor,
    norm: str,
    seed: int,
    keep_adversarial: bool,
    advance: Callable[[int], None],
) -> None:
    """Run what is missing of a chunk, in order: who survives decides whom later attacks look at."""
    rows = slice(units[0].rows.start, units[0].rows.stop)
    part, answers = images[rows], labels[rows]
    survivors: dict[float, Tensor] = {}
    clean = torch.ones(len(answers), dtype=torch.bool, device=images.device)
    for unit in units:
        alive = survivors.setdefault(unit.eps, clean.clone())
        if run.is_done(unit):
            outcome = run.load(unit)
            advance(cost_of(unit))
        else:
            cost = cost_of(unit)
            scale = cost / steps_of(unit)
            done = 0.0

            def progress(steps: int, scale: float = scale, cost: int = cost) -> None:
                nonlocal done
                before, done = int(done), min(float(cost), done + steps * scale)  # a blind attack is tried again
                advance(int(done) - before)

            outcome, adversarial = run_unit(target, unit, part, answers, alive, norm=norm, seed=seed, progress=progress)
            run.save(unit, outcome, adversarial if keep_adversarial and unit.attack.name != CLEAN else None)
        # Those that were not attacked were judged all the same, a random defense with other noise: nothing follows.
        correct = torch.tensor(outcome.correct, device=images.device)
        correct |= ~torch.tensor(outcome.attacked, device=images.device)
        if unit.attack.name == CLEAN:
            clean &= correct
        elif not unit.attack.sweep:
            alive &= correct


def _shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        shard = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    number, count = shard
    check_integer("shard's count", count, low=1)
    check_integer("shard's number", number, low=0, high=count - 1)
    return number, count


def _sha256(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
