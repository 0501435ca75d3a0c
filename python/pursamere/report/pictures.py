"""The picture grid: inputs, what an attack made of them, and what the purifier makes of both."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor

from pursamere.evaluation.folder import RunFolder
from pursamere.evaluation.halving import nan_where_not_finite
from pursamere.evaluation.protocol import CLEAN
from pursamere.evaluation.result import Result
from pursamere.evaluation.target import Target
from pursamere.evaluation.units import Outcome, Unit
from pursamere.report.plots import new_figure, plain, to_png

SHOWN = 8
_RIGHT, _WRONG = "#1a7f37", "#cf222e"

Row = tuple[str, Tensor, Tensor]  # a title, images [n, C, H, W], logits [n, classes]


def picture_grid(
    result: Result, run: RunFolder, units: Sequence[Unit], target: Target, images: Tensor, labels: Tensor
) -> bytes | None:
    """Draw the first samples that an attack broke at the largest radius, then others if these are too few.

    Above each picture is what the classifier alone says of it, so that the purified rows have the model's decisions.

    Args:
        result: of the run.
        run: where the adversarial images are.
        units: all of the run's.
        target: what was attacked; without a purifier the purified rows are left out.
        images: [B, C, H, W] in [0, 1], all that were evaluated.
        labels: [B], int64.

    Returns:
        A PNG file; ``None`` if the adversarial images were not kept, or C is neither 1 nor 3.
    """
    chosen = _choose(result, run, units)
    if images.shape[1] not in (1, 3) or not chosen:
        return None
    try:
        adversarial = torch.stack([run.adversarial(unit)[row - unit.rows.start] for row, unit in chosen])
    except FileNotFoundError:
        return None
    picked = torch.tensor([row for row, _ in chosen], device=images.device)
    rows = _rows(target, images[picked], adversarial.to(images.device))
    below = [f"sample {row}\n{textwrap.fill(plain(unit.attack.name), 15)}" for row, unit in chosen]
    return _draw(rows, labels[picked].tolist(), below)


def _choose(result: Result, run: RunFolder, units: Sequence[Unit]) -> list[tuple[int, Unit]]:
    """Samples, and for each the first attack that broke it, or the one that came nearest."""
    eps = max(result.eps)
    clean = next(line.correct for line in result.lines if line.attack.name == CLEAN)
    kind = 2 * (~clean).int() + result.withstood[eps].int()  # 0: fell, 1: withstood, 2: wrong as it is
    here = [unit for unit in units if unit.eps == eps and not unit.attack.sweep]
    loaded: dict[str, Outcome] = {}
    chosen = []
    for row in torch.argsort(kind, stable=True)[:SHOWN].tolist():
        found: list[tuple[bool, float, Unit]] = []
        for unit in here:
            if row in unit.rows:
                outcome = loaded.setdefault(unit.name, run.load(unit))
                position = row - unit.rows.start
                if outcome.attacked[position]:
                    broke = not outcome.correct[position]
                    # The attacks that broke it are equals, and the first of equals is taken.
                    found.append((not broke, -float("inf") if broke else outcome.margin[position], unit))
        if found:
            chosen.append((row, min(found, key=lambda entry: entry[:2])[2]))
    return chosen


@torch.no_grad()
def _rows(target: Target, images: Tensor, adversarial: Tensor) -> list[Row]:
    pairs = (("input", images), ("adversarial", adversarial))
    if target.purifier is None or target.bare is None:
        return [(title, batch, target.logits(batch)) for title, batch in pairs]
    alone = [nan_where_not_finite(target.bare, batch, (target.classes,)) for _, batch in pairs]
    rows: list[Row] = [(title, batch, logits) for (title, batch), logits in zip(pairs, alone, strict=True)]
    for title, batch in pairs:
        target.reset(0)
        purified = nan_where_not_finite(target.purifier, batch, tuple(batch.shape[1:]))
        target.reset(0)  # a random defense draws the same for the decision as for the picture
        rows.append((f"purified\n{title}", purified, target.logits(batch)))
    return rows


def _draw(rows: list[Row], labels: list[int], below: list[str]) -> bytes:
    figure = new_figure(0.5 + 1.05 * len(labels), 0.5 + 1.27 * len(rows))
    axes = figure.subplots(len(rows), len(labels), squeeze=False)
    for line, (title, batch, logits) in zip(axes, rows, strict=True):
        pixels = batch.detach().float().nan_to_num(1.0).cpu().permute(0, 2, 3, 1).numpy()  # [n, H, W, C]
        finite = torch.isfinite(logits).all(dim=1)
        predictions = torch.where(finite, logits.argmax(1), -1).tolist()
        for axis, image, predicted, label in zip(line, pixels, predictions, labels, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            said, color = "NaN" if predicted < 0 else str(predicted), _RIGHT if predicted == label else _WRONG
            axis.set_title(said, fontsize=10, color=color, pad=3)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    for axis, label, note in zip(axes[-1], labels, below, strict=True):
        axis.set_xlabel(f"label {label}\n{note}", fontsize=7.5)
    return to_png(figure)
