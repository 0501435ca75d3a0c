"""The image grid: inputs, their adversarial images, and both after purification."""

from __future__ import annotations

import textwrap

import torch
from torch import Tensor

from pursamere.evaluation.case import Case
from pursamere.evaluation.folder import RunFolder
from pursamere.evaluation.halving import nan_where_not_finite
from pursamere.evaluation.plan import Plan
from pursamere.evaluation.result import Result
from pursamere.evaluation.target import Target
from pursamere.evaluation.units import Outcome, Unit

from .drawing import GridRow, draw_grid, new_figure, plain, to_png

__all__ = ["picture_grid"]

_SHOWN = 8


def picture_grid(result: Result, run: RunFolder, plan: Plan, case: Case) -> bytes | None:
    """Draw the first samples that an attack broke at the largest radius, then others if there are too few.

    Above each image stands the class that the classifier alone sees in it; the model's decisions are those above the
    purified rows. Without a purifier there are no purified rows.

    Returns:
        A PNG file; ``None`` if the adversarial images were not kept, or are neither gray nor RGB.
    """
    chosen = _choose(result, run, plan)
    if case.images.shape[1] not in (1, 3) or not chosen:
        return None
    try:
        adversarial = torch.stack([run.adversarial(unit)[row - unit.rows.start] for row, unit in chosen])
    except FileNotFoundError:
        return None
    picked = torch.tensor([row for row, _ in chosen], device=case.images.device)
    rows = _rows(case.target, case.images[picked], adversarial.to(case.images.device))
    labels = case.labels[picked].tolist()
    notes = [
        f"label {label}\nsample {row}\n{textwrap.fill(plain(unit.attack.name), 15)}"
        for label, (row, unit) in zip(labels, chosen, strict=True)
    ]
    figure = new_figure(0.5 + 1.05 * len(labels), 0.5 + 1.27 * len(rows))
    draw_grid(figure, rows, labels, notes)
    return to_png(figure)


def _choose(result: Result, run: RunFolder, plan: Plan) -> list[tuple[int, Unit]]:
    """Samples, each with the first attack that broke it or, if none did, the one that came closest."""
    eps = max(result.eps)
    kind = 2 * (~result.clean_line.correct).int() + result.withstood[eps].int()  # 0 fell, 1 withstood, 2 always wrong
    here = [unit for unit in plan.units if unit.eps == eps and not unit.attack.sweep]
    loaded: dict[str, Outcome] = {}
    chosen = []
    for row in torch.argsort(kind, stable=True)[:_SHOWN].tolist():
        found: list[tuple[bool, float, Unit]] = []
        for unit in here:
            if row in unit.rows:
                outcome = loaded.setdefault(unit.name, run.load(unit))
                position = row - unit.rows.start
                if outcome.attacked[position]:
                    broke = not outcome.correct[position]
                    # Attacks that broke the sample compare equal, and the first of them is taken.
                    found.append((not broke, -float("inf") if broke else outcome.margin[position], unit))
        if found:
            chosen.append((row, min(found, key=lambda entry: entry[:2])[2]))
    return chosen


@torch.no_grad()
def _rows(target: Target, images: Tensor, adversarial: Tensor) -> list[GridRow]:
    pairs = (("input", images), ("adversarial", adversarial))
    if target.purifier is None or target.bare is None:
        return [GridRow(title, batch, _predictions(target.logits(batch))) for title, batch in pairs]
    rows = []
    for title, batch in pairs:
        logits = nan_where_not_finite(target.bare, batch, (target.classes,))
        rows.append(GridRow(title, batch, _predictions(logits)))
    for title, batch in pairs:
        target.reset(0)
        purified = nan_where_not_finite(target.purifier, batch, tuple(batch.shape[1:]))
        target.reset(0)  # a random defense draws the same for the decision as for the picture
        rows.append(GridRow(f"purified\n{title}", purified, _predictions(target.logits(batch))))
    return rows


def _predictions(logits: Tensor) -> list[int]:
    """The predicted classes; -1 where logits are not finite."""
    return torch.where(torch.isfinite(logits).all(dim=1), logits.argmax(1), -1).tolist()
