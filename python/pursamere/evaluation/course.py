"""Statistics of a running attack, for the masking checks and the loss plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pursamere._validation import check_integer, check_real

__all__ = ["Course", "joined"]

_BINS = 64  # bins of gradient norms per octave: the median is off by at most half a percent


@dataclass
class Course:
    """Statistics of attacks on some samples, independent of how these were divided into batches.

    Attributes:
        samples: number of samples.
        curve: mean over the samples of the smallest margin after 1, 2, ... forward passes; empty if not observed.
        zero: number of zero gradients.
        norms: histogram of the L2 norms of the other gradients, as pairs (bin, count); bin b begins at
            ``2 ** (b / 64)``.
        largest: L2 norm of the largest gradient.
    """

    samples: int
    curve: list[float] = field(default_factory=list)
    zero: int = 0
    norms: list[tuple[int, int]] = field(default_factory=list)
    largest: float = 0.0

    def check(self) -> None:
        """Raise a ``TypeError`` or a ``ValueError`` unless all values, read from a file, are of the right type."""
        for name in ("samples", "zero"):
            check_integer(name, getattr(self, name), low=0)
        check_real("largest", self.largest)
        for margin in self.curve:
            check_real("a margin of the curve", margin)
        for start, number in self.norms:
            check_integer("a number of gradients", number, low=1)
            check_integer("a bin", abs(start), low=0)

    def observe(self, best_margin: Tensor, gradient: Tensor | None) -> None:
        """Record a forward pass, see :data:`pursamere.attacks.attack.Observer`."""
        seen = best_margin[torch.isfinite(best_margin)]
        if len(seen):
            self.curve.append(float(seen.double().mean()))
        if gradient is not None:
            # In float64, where squares of small float32 numbers do not underflow.
            norms = torch.linalg.vector_norm(gradient.detach().flatten(1), dim=1, dtype=torch.float64).cpu()
            bins = (_BINS * norms[norms > 0].log2()).floor().long()
            self.zero += int((norms == 0).sum())
            self.norms = sorted((Counter(dict(self.norms)) + Counter(bins.tolist())).items())
            self.largest = max(self.largest, float(norms.max())) if len(norms) else self.largest

    def gradients(self) -> dict[str, float]:
        """Count of gradients, count of zero ones, median and largest L2 norm; empty if there were none."""
        count = self.zero + sum(number for _, number in self.norms)
        if not count:
            return {}
        below, median = self.zero, 0.0
        for start, number in self.norms:
            if 2 * below >= count:
                break
            below, median = below + number, 2 ** ((start + 0.5) / _BINS)
        return {"count": count, "zero": self.zero, "median": min(median, self.largest), "largest": self.largest}


def joined(courses: Sequence[Course]) -> Course:
    """The statistics over the samples of all courses."""
    norms: Counter[int] = Counter()
    for course in courses:
        norms.update(dict(course.norms))
    return Course(
        samples=sum(course.samples for course in courses),
        curve=_mean_curve([course for course in courses if course.curve]),
        zero=sum(course.zero for course in courses),
        norms=sorted(norms.items()),
        largest=max((course.largest for course in courses), default=0.0),
    )


def _mean_curve(courses: Sequence[Course]) -> list[float]:
    """The mean weighted by samples; a curve that ends early keeps its last value."""
    total = sum(course.samples for course in courses)
    length = max((len(course.curve) for course in courses), default=0)
    return [
        sum(course.curve[min(i, len(course.curve) - 1)] * course.samples for course in courses) / total
        for i in range(length)
    ]
