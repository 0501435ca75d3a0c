"""How well DiffPure's solvers follow the reverse process on Gaussian priors, where it is known.

The pixels of the prior are independent N(1/2, tau^2). From x0 the process leads to the posterior given
y = x0 + sigma xi: with k = tau^2 / (tau^2 + sigma^2), its mean has the slope k in x0, and its standard deviation over
the pixels, the spread, is sigma sqrt(k + k^2). The table has the deviations from both, before results are clipped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pursamere.baselines import DiffPure, PublishedDiffPure
from pursamere.stepping import IterativePurifier, StepMode

TAUS = (0.02, 0.05, 0.1, 0.25, 0.5)
MEAN, SIDE = 0.5, 512
Make = Callable[[Callable[[Tensor, float], Tensor]], IterativePurifier]


def settings() -> dict[str, Make]:
    made: dict[str, Make] = {}
    for solver in ("euler", "heun", "corrected"):
        for steps in (10, 20, 40, 80):
            made[f"`{solver}`, {steps} steps"] = lambda d, solver=solver, steps=steps: DiffPure(
                d, solver=solver, steps=steps
            )
    made["`PublishedDiffPure`, 100 steps"] = PublishedDiffPure
    return made


def deviations(make: Make, tau: float) -> tuple[float, float]:
    """Slope and spread divided by the exact ones, minus 1; the sampling error of the spread is 0.1 %."""
    model = make(lambda y, sigma: MEAN + (y - MEAN) * (tau**2 / (tau**2 + sigma**2)))
    sigma = math.sqrt(math.expm1(0.1 * 0.1 + 19.9 * 0.1**2 / 2)) / 2
    if isinstance(model, DiffPure):
        sigma = model.sigma_max
    k = tau**2 / (tau**2 + sigma**2)
    mode = StepMode(model.noise, projected=False)  # not clipped
    low, high = (
        model._last(mode, torch.full((1, 1, SIDE, SIDE), gray, dtype=torch.float64))[0]
        for gray in (MEAN - 0.1, MEAN + 0.1)
    )
    slope, spread = float((high - low).mean()) / 0.2, float(low.std())
    return slope / k - 1, spread / (sigma * math.sqrt(k + k**2)) - 1


def percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0, so that no zero is negative


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> None:
    rows = [["solver", "passes", *(f"tau {tau:g}" for tau in TAUS)], ["---", *["---:"] * (len(TAUS) + 1)]]
    for name, make in settings().items():
        found = [deviations(make, tau) for tau in TAUS]
        passes = make(lambda y, sigma: y).network_passes.total
        rows.append([name, str(passes), *(f"{percent(slope)} / {percent(spread)}" for slope, spread in found)])
    for row in rows:
        print(f"| {' | '.join(row)} |")
