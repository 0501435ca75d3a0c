"""Signs that attacks were misled rather than withstood (after Carlini et al., 2019; evaluation protocol, point 4).

Each check states its bound. None of them proves anything: that all pass does not make a claim true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pursamere.evaluation.protocol import LONG, LONGEST, SHORT

if TYPE_CHECKING:
    from pursamere.evaluation.summary import Line

# A share of the samples, at least one of them, that a comparison may be off by.
TOLERANCE = 0.02
# How much better BPDA may do than the exact gradient.
IDENTITY_MARGIN = 0.05
# The accuracy that may be left at the largest radius.
END_OF_SWEEP = 0.05
# The share of the whole fall of the mean margin that may fall into the last tenth of the steps.
LAST_TENTH = 0.1
ZERO_GRADIENTS = 0.01
EXPLODING = 1e6


@dataclass(frozen=True)
class Check:
    """Whether a sign of masking was absent, and the figures."""

    name: str
    passed: bool
    detail: str


def masking_checks(lines: Sequence[Line], eps: Sequence[float], is_random: bool) -> list[Check]:
    """All checks that the attacks run allow; those that lack an attack are left out."""
    checks = []
    for radius in eps:
        here = [line for line in lines if line.eps == radius and not line.attack.sweep]
        checks += [_black_box(here, radius), _more_steps(here, radius), _identity(here, radius), _flat(here, radius)]
    checks += [_sweep([line for line in lines if line.attack.sweep]), _gradients(lines), _warnings(lines)]
    if is_random:
        detail = "the defence draws fresh noise in every call: what misled it once may not do so again"
        checks.append(Check("deterministic", False, detail))
    return [check for check in checks if check is not None]


def _fallen(lines: Iterable[Line], samples: int) -> Tensor:
    """Bool [samples], which samples fell to any of these attacks."""
    fallen = torch.zeros(samples, dtype=torch.bool)
    for line in lines:
        rows = torch.tensor(line.rows)
        fallen[rows] |= line.attacked & ~line.correct
    return fallen


def _black_box(lines: list[Line], eps: float) -> Check | None:
    """Black-box attacks must not find what white-box attacks miss."""
    black = [line for line in lines if line.attack.is_black_box]
    white = [line for line in lines if not line.attack.is_black_box]
    if not black or not white:
        return None
    samples = max(max(line.rows) for line in lines) + 1
    missed = int((_fallen(black, samples) & ~_fallen(white, samples)).sum())
    allowed = max(1, int(TOLERANCE * samples))
    return Check(
        f"black-box, eps {eps:.4g}",
        missed <= allowed,
        f"{missed} of {samples} samples fell to black-box attacks only (at most {allowed} allowed)",
    )


def _named(lines: Iterable[Line], name: str) -> Line | None:
    return next((line for line in lines if line.attack.name == name), None)


def _more_steps(lines: list[Line], eps: float) -> Check | None:
    """More steps of the same attack must not find less."""
    short, long = _named(lines, SHORT), _named(lines, LONG)
    if short is None or long is None:
        return None
    helped = long.share.value - short.share.value
    return Check(
        f"more steps, eps {eps:.4g}",
        helped <= TOLERANCE,
        f"accuracy {short.share.value:.3f} after {short.attack.steps} steps of PGD, {long.share.value:.3f} after "
        f"{long.attack.steps} (may rise by {TOLERANCE:g})",
    )


def _identity(lines: list[Line], eps: float) -> Check | None:
    """BPDA must not do better than the exact gradient by more than a margin."""
    comparable = [line for line in lines if not line.attack.survivors_only and not line.attack.is_black_box]
    pairs = [
        (exact.share.value - line.share.value, exact, line)
        for line in comparable
        for exact in comparable
        if line.attack.gradient == "identity"
        and exact.attack == replace(line.attack, name=exact.attack.name, gradient="exact")
    ]
    if not pairs:
        return None
    gap, exact, identity = max(pairs, key=lambda pair: pair[0])
    return Check(
        f"identity against exact, eps {eps:.4g}",
        gap <= IDENTITY_MARGIN,
        f"{exact.attack.name}: accuracy {exact.share.value:.3f} with the exact gradient, {identity.share.value:.3f} "
        f"with the identity (which may be lower by {IDENTITY_MARGIN:g}; the worst case counts both)",
    )


def _flat(lines: list[Line], eps: float) -> Check | None:
    """The loss of the long attack must have come to rest: many more steps must not find more, where they were run."""
    line, longest = _named(lines, LONG), _named(lines, LONGEST)
    if line is None:
        return None
    if longest is not None:
        same = torch.tensor(longest.rows)
        more = int((line.correct[same] & ~longest.correct).sum())
        allowed = max(1, int(TOLERANCE * len(same)))
        return Check(
            f"loss at rest, eps {eps:.4g}",
            more <= allowed,
            f"{more} of {len(same)} samples fell to {longest.attack.steps:,} steps of PGD that withstood "
            f"{line.attack.restarts} times {line.attack.steps} (at most {allowed} allowed)",
        )
    curve = line.curve[: line.attack.steps + 1]  # of the first start
    if len(curve) < 10:
        return None
    fall = curve[0] - curve[-1]
    late = curve[-1 - len(curve) // 10] - curve[-1]
    share = late / fall if fall > 0 else 0.0
    return Check(
        f"loss at rest, eps {eps:.4g}",
        share <= LAST_TENTH,
        f"{share:.1%} of the fall of the mean margin of {LONG} lies in the last tenth of its steps (at most "
        f"{LAST_TENTH:.0%} allowed)",
    )


def _sweep(lines: list[Line]) -> Check | None:
    """Robust accuracy must fall to zero as eps grows."""
    if not lines:
        return None
    ordered = sorted(lines, key=lambda line: line.eps)
    values = ", ".join(f"{line.share.value:.3f} at {line.eps:.4g}" for line in ordered)
    rises = any(b.share.value > a.share.value + END_OF_SWEEP for a, b in pairwise(ordered))
    return Check(
        "accuracy falls with eps",
        ordered[-1].share.value <= END_OF_SWEEP and not rises,
        f"{values} (at most {END_OF_SWEEP:g} may be left at the end, or be gained on the way)",
    )


def _gradients(lines: Sequence[Line]) -> Check | None:
    """Gradients that are zero, or of wildly different size, steer an attack nowhere."""
    seen = [line for line in lines if line.gradients and line.attack.gradient == "exact"]
    if not seen:
        return None
    count = sum(line.gradients["count"] for line in seen)
    zero = sum(line.gradients["zero"] for line in seen) / count
    ratio = max(line.gradients["largest"] / max(line.gradients["median"], 1e-300) for line in seen)
    return Check(
        "gradients",
        zero <= ZERO_GRADIENTS and ratio <= EXPLODING,
        f"{zero:.2%} of {count:,.0f} exact gradients are zero (at most {ZERO_GRADIENTS:.0%} allowed); the largest is "
        f"{ratio:.3g} times the median (at most {EXPLODING:g})",
    )


def _warnings(lines: Sequence[Line]) -> Check | None:
    """No attack may have been blind, or have complained."""
    said = [
        f"{line.attack.name}, eps {line.eps:.4g}: {text}"
        for line in lines
        for text in (line.blind_reason, *line.flags)
        if text
    ]
    return Check(
        "attacks could see", not said, "; ".join(said) or "no NaN or infinite logits or gradients, no warnings"
    )
