"""Checks for gradient masking: signs that attacks were misled rather than withstood (after Carlini et al., 2019).

Each check states its bound. Passing all of them proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from pursamere.derivative_check import Agreement

from .result import AttackResult, MaskingCheck, sweeps_of

__all__ = ["masking_checks"]

_TOLERANCE = 0.02  # share of the samples, at least one, by which a comparison may be off
_IDENTITY_MARGIN = 0.05  # by how much BPDA may beat the exact gradient
_END_OF_SWEEP = 0.05  # accuracy that may be left at the largest radius
_LAST_TENTH = 0.1  # share of the total fall of the mean margin allowed in the last tenth of the steps
_ZERO_GRADIENTS = 0.01  # share of gradients that may be zero
_EXPLODING = 1e6  # ratio of the largest gradient to the median
_FEWEST_POINTS = 10  # on a loss curve that has a last tenth


def masking_checks(
    lines: Sequence[AttackResult],
    eps: Sequence[float],
    is_random: bool,
    derivative: Agreement | None,
    ladder: tuple[str, ...] = (),
    logits: Tensor | None = None,
) -> list[MaskingCheck]:
    """Return all checks that the attacks allow; those that lack an attack are left out.

    Args:
        lines: the results of all attacks at all radii.
        eps: the radii.
        is_random: whether the defense draws fresh noise in every call.
        derivative: how autograd's derivative of the purifier compares with finite differences, if it was compared.
        ladder: see :class:`pursamere.evaluation.Protocol`.
        logits: of some clean images, [n, classes].
    """
    checks: list[MaskingCheck | None] = []
    for radius in eps:
        here = [line for line in lines if line.eps == radius and not line.attack.sweep]
        steps = [next((line for line in here if line.attack.name == name), None) for name in ladder]
        short, long, longest = (*steps, None, None, None)[:3]
        checks += [_black_box(here), _more_steps(short, long), _identity(here), _at_rest(long, longest)]
    checks += [*_sweeps(lines), _gradients(lines), _warnings(lines), _probabilities(logits)]
    if derivative is not None:  # the evaluation has refused a wrong one
        detail = f"autograd and finite differences of a purification step: {derivative}"
        checks.append(MaskingCheck("derivative", derivative.is_known, detail))
    if is_random:
        detail = "the defense draws fresh noise in every call: what fooled it once may not do so again"
        checks.append(MaskingCheck("deterministic", False, detail))
    return [check for check in checks if check is not None]


def _probabilities(logits: Tensor | None) -> MaskingCheck | None:
    """Attacks need logits: derivatives of probabilities vanish where the model is sure."""
    if logits is None or not bool(((logits >= 0) & (logits <= 1)).all()):
        return None
    detail = (
        "all outputs are in [0, 1], like those of a softmax or sigmoid, which attacks must not see: they need logits"
    )
    return MaskingCheck("logits", False, detail)


class _OnSamples:
    """What some attacks did together, by position among all samples, bool [samples].

    Attributes:
        meant: the samples that one of them applies to, survivors or not.
        tried: the samples that one of them attacked without being blind.
        fell: the tried samples that fell to one of them.
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


def _black_box(lines: list[AttackResult]) -> MaskingCheck | None:
    """Black-box attacks must not find what white-box attacks miss."""
    samples = 1 + max((row for line in lines for row in line.rows), default=-1)
    black = _OnSamples([line for line in lines if line.attack.gradient is None], samples)
    white = _OnSamples([line for line in lines if line.attack.gradient is not None], samples)
    count = int((black.meant & white.tried).sum())
    if not count:
        return None
    missed, allowed = int((black.fell & white.tried & ~white.fell).sum()), _allowed(count)
    return MaskingCheck(
        f"black-box, eps {lines[0].eps:.4g}",
        missed <= allowed,
        f"{missed} of {count} samples fell to black-box attacks only (at most {allowed} allowed)",
    )


def _allowed(samples: int) -> int:
    return max(1, int(_TOLERANCE * samples))


def _more_steps(short: AttackResult | None, long: AttackResult | None) -> MaskingCheck | None:
    """More steps of the same attack must not find less."""
    if short is None or long is None:
        return None
    after_short, after_long = _both(short, long)
    if not len(after_short):
        return None
    few, many = float(after_short.double().mean()), float(after_long.double().mean())
    return MaskingCheck(
        f"more steps, eps {long.eps:.4g}",
        many - few <= _TOLERANCE,
        f"accuracy {few:.3f} under {short.attack.name}, {many:.3f} under {long.attack.name}, which makes more steps "
        f"(may rise by {_TOLERANCE:g})",
    )


def _identity(lines: list[AttackResult]) -> MaskingCheck | None:
    """BPDA must not beat the same attack with the exact gradient by more than a margin."""
    comparable = [line for line in lines if not line.attack.survivors_only and line.attack.gradient is not None]
    pairs: list[tuple[float, float, str]] = []
    for line in (line for line in comparable if line.attack.gradient == "identity"):
        for exact in comparable:
            if exact.attack == replace(line.attack, name=exact.attack.name, gradient="exact"):  # type: ignore[call-arg]
                one, other = _both(exact, line)
                if len(one):
                    pairs.append((float(one.double().mean()), float(other.double().mean()), exact.attack.name))
    if not pairs:
        return None
    through_exact, through_identity, name = max(pairs, key=lambda pair: pair[0] - pair[1])
    return MaskingCheck(
        f"identity against exact, eps {lines[0].eps:.4g}",
        through_exact - through_identity <= _IDENTITY_MARGIN,
        f"{name}: accuracy {through_exact:.3f} with the exact gradient, {through_identity:.3f} "
        f"with the identity (which may be lower by {_IDENTITY_MARGIN:g}; the worst case counts both)",
    )


def _at_rest(long: AttackResult | None, longest: AttackResult | None) -> MaskingCheck | None:
    """The attack must have converged: many more steps find no more or, if none were run, its loss curve is flat."""
    if long is None:
        return None
    name = f"loss at rest, eps {long.eps:.4g}"
    if longest is not None:
        after_long, after_longest = _both(long, longest)
        if not len(after_long):
            return None
        more, allowed = int((after_long & ~after_longest).sum()), _allowed(len(after_long))
        detail = (
            f"{more} of {len(after_long)} samples fell to {longest.attack.name} that withstood {long.attack.name} (at "
            f"most {allowed} allowed)"
        )
        return MaskingCheck(name, more <= allowed, detail)
    points = long.attack.forward_passes  # of the first start
    curve = long.curve[:points]
    if not curve or points < _FEWEST_POINTS:
        return None
    curve += [curve[-1]] * (points - len(curve))  # a shorter curve ends where all samples had fallen
    fall = curve[0] - curve[-1]
    late = curve[-1 - len(curve) // 10] - curve[-1]
    share = late / fall if fall > 0 else 0.0
    detail = (
        f"{share:.1%} of the fall of the mean margin of {long.attack.name} lies in the last tenth of its steps (at "
        f"most {_LAST_TENTH:.0%} allowed)"
    )
    return MaskingCheck(name, share <= _LAST_TENTH, detail)


def _sweeps(lines: Sequence[AttackResult]) -> list[MaskingCheck]:
    """Robust accuracy must fall to zero as eps grows, under each attack that was run at many radii."""
    sweeps = sweeps_of(lines)
    checks = []
    for name, found in sweeps.items():
        values = ", ".join(f"{line.share.value:.3f} at {line.eps:.4g}" for line in found)
        rises = any(b.share.value > a.share.value + _END_OF_SWEEP for a, b in pairwise(found))
        checks.append(
            MaskingCheck(
                "accuracy falls with eps" + (f", {name}" if len(sweeps) > 1 else ""),
                found[-1].share.value <= _END_OF_SWEEP and not rises,
                f"{values} (may end at no more than {_END_OF_SWEEP:g}, and rise by no more than that on the way)",
            )
        )
    return checks


def _gradients(lines: Sequence[AttackResult]) -> MaskingCheck | None:
    """Zero or exploding gradients steer an attack nowhere."""
    seen = [line for line in lines if line.gradients and line.attack.gradient == "exact"]
    if not seen:
        return None
    count = sum(line.gradients["count"] for line in seen)
    zero = sum(line.gradients["zero"] for line in seen) / count
    zeros = f"{zero:.2%} of {count:,.0f} exact gradients are zero (at most {_ZERO_GRADIENTS:.0%} allowed)"
    worst = max(seen, key=lambda line: line.gradients["zero"] / line.gradients["count"])
    if worst.gradients["median"] == 0:  # nothing can be compared with it
        own = f"{worst.gradients['zero']:,.0f} of {worst.gradients['count']:,.0f}"
        detail = f"{zeros}; of {worst.attack.name}, eps {worst.eps:.4g}, {own}, so that their median is zero too"
        return MaskingCheck("gradients", False, detail)
    ratio = max(line.gradients["largest"] / line.gradients["median"] for line in seen)
    return MaskingCheck(
        "gradients",
        zero <= _ZERO_GRADIENTS and ratio <= _EXPLODING,
        f"{zeros}; the largest is {ratio:.3g} times the median (at most {_EXPLODING:g})",
    )


def _warnings(lines: Sequence[AttackResult]) -> MaskingCheck:
    """No attack may have been blind, or have warned."""
    said = [
        f"{line.attack.name}, eps {line.eps:.4g}: {text}"
        for line in lines
        for text in (line.blind_reason, *line.flags)
        if text
    ]
    return MaskingCheck(
        "attacks could see", not said, "; ".join(said) or "no NaN or infinite logits or gradients, no warnings"
    )
