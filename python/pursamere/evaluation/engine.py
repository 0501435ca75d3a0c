"""Runs the units of a plan that are not done yet, in this process or shared by several."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from pursamere._validation import check_integer

from .case import Case
from .folder import RunFolder
from .units import Unit, run_unit

__all__ = ["Bar", "check_shard", "run_chunk", "wait_for"]

Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""``bar(total, description)`` shows a progress bar; its block gets a function that advances it."""

_PATIENCE = 60.0  # seconds without news from other processes before a warning


def check_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """The number of this process and the count of all; by default those that ``torchrun`` has set."""
    if shard is None:
        shard = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    number, count = shard
    check_integer("shard's count", count, low=1)
    check_integer("shard's number", number, low=0, high=count - 1)
    return number, count


def run_chunk(
    run: RunFolder, case: Case, units: list[Unit], *, keep_adversarial: bool, advance: Callable[[int], None]
) -> None:
    """Run the missing units of a chunk, in order, since later attacks may see survivors only."""
    rows = slice(units[0].rows.start, units[0].rows.stop)
    images, labels = case.images[rows], case.labels[rows]
    clean = torch.ones(len(labels), dtype=torch.bool, device=images.device)
    survivors = {unit.eps: clean.clone() for unit in units}
    for unit in units:
        if run.is_done(unit):
            outcome = run.load(unit)
            advance(unit.cost)
        else:
            outcome, adversarial = run_unit(
                case.target,
                unit,
                images,
                labels,
                survivors[unit.eps] & clean,
                norm=case.norm,
                seed=case.seed,
                progress=_scaled(unit, advance),
            )
            run.save(unit, outcome, adversarial if keep_adversarial and unit.attack.perturbs else None)
        withstood = torch.tensor(outcome.withstood, device=images.device)
        if not unit.attack.perturbs:
            clean &= withstood
        elif not unit.attack.sweep:
            survivors[unit.eps] &= withstood


def _scaled(unit: Unit, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turn the steps that an attack reports into the unit's cost, which is never exceeded."""
    done = 0.0

    def progress(steps: int) -> None:
        nonlocal done
        before, done = int(done), min(float(unit.cost), done + steps * unit.cost / unit.attack.work)
        advance(int(done) - before)

    return progress


def wait_for(missing: list[Unit], run: RunFolder, bar: Bar) -> None:
    """Wait until other processes have run the missing units; ``torchrun`` ends all processes if one fails."""
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
