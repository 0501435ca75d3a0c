"""Signs that attacks were misled rather than withstood (after Carlini et al., 2019; evaluation protocol, point 4).

Each check states its bound. None of them proves anything: that all pass does not make a claim true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from pursamere.derivative_check import Agreement
from pursamere.evaluation.protocol import LONG, LONGEST, SHORT
from pursamere.evaluation.result import AttackResult, MaskingCheck

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


def masking_checks(
    lines: Sequence[AttackResult], eps: Sequence[float], is_random: bool, derivative: Agreement | None
) -> list[MaskingCheck]:
    """All checks that the attacks run allow; those that lack an attack, or compared derivatives, are left out."""
    checks: list[MaskingCheck | None] = []
    for radius in eps:
        here = [line for line in lines if line.eps == radius and not line.attack.sweep]
        checks += [_black_box(here, radius), _more_steps(here, radius), _identity(here, radius), _flat(here, radius)]
    checks += [*_sweeps(lines), _gradients(lines), _warnings(lines)]
    if derivative is not None:  # a wrong one has been refused
        detail = f"autograd and finite differences of a purification step: {derivative}"
        checks.append(MaskingCheck("derivative", derivative.is_known, detail))
    if is_random:
        detail = "the defense draws fresh noise in every call: what misled it once may not do so again"
        checks.append(MaskingCheck("deterministic", False, detail))
    return [check for check in checks if check is not None]


class _OnSamples:
    """What attacks did together, by position among all samples, bool [samples].

    Attributes:
        meant: the samples that one of them was meant for, whether or not they were among its survivors.
        tried: those that one of them attacked and could see on.
        fell: those that then fell to it.
    """

    def __init__(self, lines: Iterable[AttackResult], samples: int) -> None:
        self.meant, self.tried, self.fell = (torch.zeros(samples, dtype=torch.bool, device="cpu") for _ in range(3))
        for line in lines:
            rows = torch.tensor(line.rows, device="cpu")
            meant = torch.ones_like(line.tried) if line.attack.samples is None else rows < line.attack.samples
            self.meant[rows] |= meant
            self.tried[rows] |= line.tried
            self.fell[rows] |= line.tried & ~line.correct


def _both(one: AttackResult, other: AttackResult) -> tuple[Tensor, Tensor]:
    """Which samples withstood each of two attacks, bool [n] over the n samples that both tried."""
    samples = 1 + max(*one.rows, *other.rows)
    first, second = _OnSamples([one], samples), _OnSamples([other], samples)
    common = first.tried & second.tried
    return ~first.fell[common], ~second.fell[common]


def _black_box(lines: list[AttackResult], eps: float) -> MaskingCheck | None:
    """Black-box attacks must not find what white-box attacks miss."""
    samples = 1 + max((row for line in lines for row in line.rows), default=-1)
    black, white = (
        _OnSamples([line for line in lines if line.attack.is_black_box == kind], samples) for kind in (True, False)
    )
    count = int((black.meant & white.tried).sum())
    if not count:
        return None
    missed = int((black.fell & white.tried & ~white.fell).sum())
    allowed = _allowed(count)
    return MaskingCheck(
        f"black-box, eps {eps:.4g}",
        missed <= allowed,
        f"{missed} of {count} samples fell to black-box attacks only (at most {allowed} allowed)",
    )


def _allowed(samples: int) -> int:
    return max(1, int(TOLERANCE * samples))


def _named(lines: Iterable[AttackResult], name: str) -> AttackResult | None:
    return next((line for line in lines if line.attack.name == name), None)


def _more_steps(lines: list[AttackResult], eps: float) -> MaskingCheck | None:
    """More steps of the same attack must not find less."""
    short, long = _named(lines, SHORT), _named(lines, LONG)
    if short is None or long is None:
        return None
    after_short, after_long = _both(short, long)
    if not len(after_short):
        return None
    few, many = float(after_short.double().mean()), float(after_long.double().mean())
    return MaskingCheck(
        f"more steps, eps {eps:.4g}",
        many - few <= TOLERANCE,
        f"accuracy {few:.3f} after {short.attack.steps} steps of PGD, {many:.3f} after "
        f"{long.attack.steps} (may rise by {TOLERANCE:g})",
    )


def _identity(lines: list[AttackResult], eps: float) -> MaskingCheck | None:
    """BPDA must not do better than the exact gradient by more than a margin."""
    comparable = [line for line in lines if not line.attack.survivors_only and not line.attack.is_black_box]
    pairs: list[tuple[float, float, str]] = []
    for line in comparable:
        for exact in comparable:
            twin = replace(line.attack, name=exact.attack.name, gradient="exact")
            if line.attack.gradient == "identity" and exact.attack == twin:
                one, other = _both(exact, line)
                if len(one):
                    pairs.append((float(one.double().mean()), float(other.double().mean()), exact.attack.name))
    if not pairs:
        return None
    through_exact, through_identity, name = max(pairs, key=lambda pair: pair[0] - pair[1])
    return MaskingCheck(
        f"identity against exact, eps {eps:.4g}",
        through_exact - through_identity <= IDENTITY_MARGIN,
        f"{name}: accuracy {through_exact:.3f} with the exact gradient, {through_identity:.3f} "
        f"with the identity (which may be lower by {IDENTITY_MARGIN:g}; the worst case counts both)",
    )


def _flat(lines: list[AttackResult], eps: float) -> MaskingCheck | None:
    """The loss of the long attack must have come to rest: many more steps must not find more, where they were run."""
    line, longest = _named(lines, LONG), _named(lines, LONGEST)
    if line is None:
        return None
    if longest is not None:
        after_long, after_longest = _both(line, longest)
        if not len(after_long):
            return None
        more, allowed = int((after_long & ~after_longest).sum()), _allowed(len(after_long))
        return MaskingCheck(
            f"loss at rest, eps {eps:.4g}",
            more <= allowed,
            f"{more} of {len(after_long)} samples fell to {longest.attack.steps:,} steps of PGD that withstood "
            f"{line.attack.restarts} times {line.attack.steps} (at most {allowed} allowed)",
        )
    evaluations = line.attack.steps + 1  # of the first start
    curve = line.curve[:evaluations]
    if not curve or evaluations < 10:
        return None
    curve += [curve[-1]] * (evaluations - len(curve))  # a shorter one ends where all samples had fallen
    fall = curve[0] - curve[-1]
    late = curve[-1 - len(curve) // 10] - curve[-1]
    share = late / fall if fall > 0 else 0.0
    return MaskingCheck(
        f"loss at rest, eps {eps:.4g}",
        share <= LAST_TENTH,
        f"{share:.1%} of the fall of the mean margin of {LONG} lies in the last tenth of its steps (at most "
        f"{LAST_TENTH:.0%} allowed)",
    )


def _sweeps(lines: Iterable[AttackResult]) -> list[MaskingCheck]:
    """Robust accuracy must fall to zero as eps grows, under each attack that was run at many radii."""
    sweeps: dict[str, list[AttackResult]] = {}
    for line in lines:
        if line.attack.sweep:
            sweeps.setdefault(line.attack.name, []).append(line)
    checks = []
    for name, found in sweeps.items():
        ordered = sorted(found, key=lambda line: line.eps)
        values = ", ".join(f"{line.share.value:.3f} at {line.eps:.4g}" for line in ordered)
        rises = any(b.share.value > a.share.value + END_OF_SWEEP for a, b in pairwise(ordered))
        checks.append(
            MaskingCheck(
                "accuracy falls with eps" + (f", {name}" if len(sweeps) > 1 else ""),
                ordered[-1].share.value <= END_OF_SWEEP and not rises,
                f"{values} (at most {END_OF_SWEEP:g} may be left at the end, or be gained on the way)",
            )
        )
    return checks


def _gradients(lines: Sequence[AttackResult]) -> MaskingCheck | None:
    """Gradients that are zero, or of wildly different size, steer an attack nowhere."""
    seen = [line for line in lines if line.gradients and line.attack.gradient == "exact"]
    if not seen:
        return None
    count = sum(line.gradients["count"] for line in seen)
    zero = sum(line.gradients["zero"] for line in seen) / count
    ratio = max(line.gradients["largest"] / max(line.gradients["median"], 1e-300) for line in seen)
    return MaskingCheck(
        "gradients",
        zero <= ZERO_GRADIENTS and ratio <= EXPLODING,
        f"{zero:.2%} of {count:,.0f} exact gradients are zero (at most {ZERO_GRADIENTS:.0%} allowed); the largest is "
        f"{ratio:.3g} times the median (at most {EXPLODING:g})",
    )


def _warnings(lines: Sequence[AttackResult]) -> MaskingCheck | None:
    """No attack may have been blind, or have complained."""
    said = [
        f"{line.attack.name}, eps {line.eps:.4g}: {text}"
        for line in lines
        for text in (line.blind_reason, *line.flags)
        if text
    ]
    return MaskingCheck(
        "attacks could see", not said, "; ".join(said) or "no NaN or infinite logits or gradients, no warnings"
    )
