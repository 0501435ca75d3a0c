"""``pursamere.evaluate``: run a protocol on a model and a data set, and write the report."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pursamere._extras import require
from pursamere._output import claim, require_own
from pursamere._threads import cpu_threads
from pursamere._validation import check_choice, check_integer
from pursamere.attacks._balls import NORMS, check_problem, check_radius
from pursamere.attacks.attack import Model
from pursamere.evaluation import PRESETS, IncompleteRunError, Protocol, Result
from pursamere.evaluation.case import Case
from pursamere.evaluation.engine import Bar, check_shard, run_chunk, wait_for
from pursamere.evaluation.environment import describe_environment
from pursamere.evaluation.folder import RunFolder, recorded_threads
from pursamere.evaluation.plan import Plan, make_plan
from pursamere.evaluation.summary import summarize, summary_json
from pursamere.evaluation.target import Target

__all__ = ["evaluate", "require_packages"]


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
    """Attack a model with all attacks of a protocol; return per-sample outcomes, the worst case and masking checks.

    Finished work is kept in ``folder``: the same call resumes a killed run and produces the same bytes of
    ``outcomes.csv``. Several processes can share a run. Under ``torchrun`` (``RANK`` and ``WORLD_SIZE`` in the
    environment) each takes its share, waits for the others and returns the result, which rank 0 writes; pass
    ``shard=(0, 1)`` to evaluate in one of the processes only. Without ``torchrun``, give each process a ``shard``; the
    one that finds all units done writes the result.

    Args:
        model: a :class:`pursamere.PurifiedClassifier` in evaluation mode, attacked through every gradient it has, or
            any callable from images [N, C, H, W] to logits [N, classes], attacked through its own gradient. The former
            may be a subclass and have hooks: attacks see copies with other gradients, which must have the same logits.
        images: [B, C, H, W] in [0, 1], at least one, on the device to work on. Some attacks run on the first images
            only, so shuffle images sorted by class, see :meth:`pursamere.datasets.Dataset.balanced`.
        labels: [B], int64.
        folder: created if missing; must be empty or hold a run of the same configuration.
        eps: radius or radii of the attacks, in pixel units.
        norm: "linf" or "l2".
        preset: "quick", "standard", "full", or a :class:`pursamere.evaluation.Protocol`.
        seed: seed of the attacks.
        chunk: number of samples attacked together, whose activations are in memory at once. Defines the run, and is
            the unit that processes share.
        micro_batch: batch size for models other than ``PurifiedClassifier``.
        threads: CPU threads to use, by default PyTorch's. Resumed and shared runs keep the original number, since the
            last bits may depend on it.
        shard: (i, n) to run the chunks whose number is i modulo n, i in [0, n).
        data: description of the images, for the report.
        class_names: what the labels 0, 1, ... stand for, one name per logit; ``model.class_names`` by default, which
            they must equal if the model has them.
        keep_adversarial: whether to keep the adversarial images as safetensors files.
        bar: ``bar(total, description)`` shows a progress bar; its block gets a function that advances it.

    Raises:
        IncompleteRunError: the given ``shard`` is done, but others are not.
        MissingExtraError: a package of the extra ``evaluation`` is not installed.
        TypeError: an argument has the wrong type, the model does not return a floating tensor, or its ``forward`` was
            replaced on the instance.
        ValueError: an argument is out of range; ``folder`` holds another run or other files, or another process is
            writing to it (unless it shares the run); the model does not return logits, or has a layer in training
            mode that is random, mixes samples or updates itself; or a copy of the model with another gradient has other
            logits.
        RuntimeError: the model is not deterministic (the message shows two logits that differ); it is NaN or infinite
            on every image; or autograd's derivative of its denoiser is wrong, see
            :meth:`pursamere.IterativePurifier.check_derivative`.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    require_own(folder, "evaluate")
    target = Target(model, check_integer("micro_batch", micro_batch, low=1))
    images = check_problem(images, labels).detach()
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images must be float32 or float64, since half types round the ball away, got {images.dtype}")
    given: Any = [eps] if isinstance(eps, Real) else eps
    check_choice("norm", norm, NORMS)
    radii = tuple(check_radius("eps", radius, norm) for radius in given)
    if not radii or len(set(radii)) < len(radii):
        raise ValueError(f"eps must be at least one radius, and different ones, got {radii}")
    if not isinstance(preset, str | Protocol):
        raise TypeError(f"preset must be a name or a pursamere.evaluation.Protocol, got {type(preset).__name__}")
    protocol = preset if isinstance(preset, Protocol) else PRESETS[check_choice("preset", preset, PRESETS)]
    check_integer("seed", seed, low=0)
    check_integer("chunk", chunk, low=1)
    asked = torch.get_num_threads() if threads is None else check_integer("threads", threads, low=1)
    case = Case(target, images, labels.detach(), radii, norm, protocol, seed, chunk, micro_batch, data, class_names)
    number, count = check_shard(shard)
    require_packages(protocol)
    for attack in protocol.attacks:
        attack.check_images(images, norm)
    derivative = case.check_model()
    with cpu_threads(recorded_threads(Path(folder)) or asked):  # on which micro-batches depend
        config = case.config()
    with claim(folder, "evaluate", shared=count > 1):
        run = RunFolder(Path(folder), config, describe_environment(images.device, asked))
        original = run.environment["threads"]
        if original != asked:
            warnings.warn(f"evaluating with {original} CPU threads, as the run began, not {asked}", stacklevel=2)
        with cpu_threads(original):
            plan = make_plan(case)
            mine = [units for i, units in enumerate(plan.chunks) if i % count == number]
            total = sum(unit.cost for units in mine for unit in units)
            with bar(total, f"{protocol.name} evaluation") as advance:
                for units in mine:
                    run_chunk(run, case, units, keep_adversarial=keep_adversarial, advance=advance)
            missing = [unit for unit in plan.units if not run.is_done(unit)]
            if shard is None:
                wait_for(missing, run, bar)
            elif missing:
                raise IncompleteRunError(
                    f"shard {number}/{count} is done; {len(missing)} of {len(plan.units)} units are missing"
                )
            result = summarize(run, case, plan, derivative)
        if shard is not None or number == 0:
            write_summary(run, result, plan, case)
        return result


def require_packages(protocol: Protocol) -> None:
    """Raise a ``MissingExtraError`` now if a package is missing that is needed after hours of work."""
    of_attacks = [package for attack in protocol.attacks for package in attack.packages]
    for module in ("safetensors", "matplotlib.figure", "markdown", *of_attacks):
        require(module, extra="evaluation")


def write_summary(run: RunFolder, result: Result, plan: Plan, case: Case) -> None:
    """Write ``summary.json``, and the report in Markdown and HTML with its plots."""
    # Here, so that importing pursamere doesn't import what draws.
    from pursamere.report.html import html_page
    from pursamere.report.markdown import ACCURACY, BARS, GRID, LOSS, markdown_report, title
    from pursamere.report.pictures import picture_grid
    from pursamere.report.plots import accuracy_plot, bar_plot, loss_plot

    run.write("summary.json", (json.dumps(summary_json(result), indent=1) + "\n").encode())
    drawn = {
        ACCURACY: accuracy_plot(result),
        BARS: bar_plot(result),
        LOSS: loss_plot(result),
        GRID: picture_grid(result, run, plan, case),
    }
    pictures = {name: content for name, content in drawn.items() if content is not None}
    for name, content in pictures.items():
        run.write(name, content)
    kept = next((unit.name for unit in plan.units if run.has_adversarial(unit)), None)
    text = markdown_report(result, pictures, kept)
    run.write("report.md", text.encode())
    run.write("report.html", html_page(title(result), text, pictures).encode())
