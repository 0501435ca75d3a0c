"""How fast a model is, the memory that it takes, and how much its purifier shrinks random perturbations."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pursamere._files import require_form

from .case import Case
from .compression import compression
from .target import Target

__all__ = ["Measurements", "measure"]


@dataclass(frozen=True)
class Measurements:
    """What is measured once all attacks have run.

    Attributes:
        cost: see :class:`pursamere.evaluation.Result`.
        compression: see :class:`pursamere.evaluation.Result`.
    """

    cost: dict[str, Any]
    compression: dict[float, tuple[float, int]]

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {"cost": self.cost, "compression": [[eps, *found] for eps, found in self.compression.items()]}

    @classmethod
    def from_json(cls, values: Any) -> Measurements:
        """The measurements from what :meth:`to_json` returned; ``ValueError`` if it is anything else."""
        require_form(values, {"cost": dict, "compression": list})
        require_form(values["cost"], {"images_per_second": float, "peak_memory_mib": float})
        if any(not isinstance(value, int | float) for value in values["cost"].values()):
            raise ValueError("it has no valid cost")
        if any(list(map(type, row)) != [float, float, int] for row in values["compression"]):
            raise ValueError("it has no valid compression")
        return cls(values["cost"], {eps: (ratio, samples) for eps, ratio, samples in values["compression"]})


def measure(case: Case) -> Measurements:
    """Measure the model of a run, on its first images."""
    return Measurements(
        _cost(case.target, case.images),
        compression(case.target, case.images, case.eps, case.norm, case.seed),
    )


def _cost(target: Target, images: Tensor) -> dict[str, Any]:
    part = images[:128]
    start = time.perf_counter()
    target.logits(part)
    if part.device.type == "cuda":
        torch.cuda.synchronize(part.device)
        peak = torch.cuda.max_memory_allocated(part.device) / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    rate = len(part) / (time.perf_counter() - start)
    cost: dict[str, Any] = {"images_per_second": round(rate, 1), "peak_memory_mib": round(peak, 1)}
    passes = getattr(target.purifier, "network_passes", None)
    if passes is not None:
        cost |= {"forward_passes": passes.forward, "backward_passes": passes.backward}
    return cost
