"""Which attacks an evaluation consists of, and what each preset leaves out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pursamere._validation import check_choice, check_integer, check_nonnegative
from pursamere.attacks import LOSSES, TARGETED_DLR

SOURCES = ("bare", "other_noise", "fewer_steps")
KINDS = ("none", "pgd", "apgd", "autoattack", "transfer", "random_search", "square")
GRADIENTS = ("exact", "identity", "straight_through")
GRADIENT_FREE = ("none", "random_search", "square", "transfer")
CLEAN = "clean"


@dataclass(frozen=True)
class Attack:
    """One line of a protocol.

    Attributes:
        name: unique in its protocol; part of file names.
        kind: "none" (the images as they are), "pgd", "apgd", "autoattack", "transfer", "random_search" or "square".
        gradient: how gradients pass through a purifier: "exact", "identity" (BPDA) or "straight_through".
        loss: see :func:`pursamere.attacks.pgd`.
        steps: gradient steps of a restart, or queries.
        restarts: random starts; with the loss "targeted_dlr", classes aimed at.
        sources: of "transfer": "bare" (the classifier without purifier), "other_noise" and "fewer_steps" (purifiers
            that differ in the noise's seed, and in half as many steps).
        ere_weight: weight of the expected reconstruction error that is subtracted from the loss ("pgd" only).
        survivors_only: attack the samples alone that withstood the attacks before it, which saves time; its own
            accuracy then says nothing, only the worst case does.
        samples: attack at most so many of the samples, the first ones.
        sweep: run at several radii, for the accuracy as a function of eps; not part of the worst case, and not for
            survivors only.
    """

    name: str
    kind: str
    gradient: str = "exact"
    loss: str = "margin"
    steps: int = 100
    restarts: int = 1
    sources: tuple[str, ...] = ()
    ere_weight: float = 0.0
    survivors_only: bool = False
    samples: int | None = None
    sweep: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise ValueError(f"name must be letters, digits, '-', '_' and '.', at most 64 of them, got {self.name!r}")
        check_choice("kind", self.kind, KINDS)
        check_choice("gradient", self.gradient, GRADIENTS)
        check_choice("loss", self.loss, (*LOSSES, TARGETED_DLR))
        check_integer("steps", self.steps, low=1)
        check_integer("restarts", self.restarts, low=1)
        for source in self.sources:
            check_choice("sources", source, SOURCES)
        if (self.kind == "transfer") != bool(self.sources):
            raise ValueError(f"sources are for kind 'transfer', which needs one, got {self.sources} for {self.kind!r}")
        if check_nonnegative("ere_weight", self.ere_weight) and self.kind != "pgd":
            raise ValueError(f"ere_weight is for kind 'pgd', got {self.ere_weight} for {self.kind!r}")
        if self.sweep and self.survivors_only:
            raise ValueError("sweep must be of an attack on all samples, got one with survivors_only=True")
        if self.samples is not None:
            check_integer("samples", self.samples, low=1)

    @property
    def is_black_box(self) -> bool:
        """Whether no gradient of the model itself is taken."""
        return self.kind in GRADIENT_FREE

    @property
    def differentiates_purifier(self) -> bool:
        """Whether it differentiates the purifier's steps, its own or another one's to transfer from."""
        if self.kind == "transfer":
            return any(source != "bare" for source in self.sources)
        return not self.is_black_box and self.gradient != "identity"


@dataclass(frozen=True)
class Protocol:
    """Attacks in the order in which they are run, each at every radius.

    Attributes:
        name: of the preset.
        attacks: the cheap ones first, since some are for survivors only.
        left_out: what the full protocol has and this one lacks, in words; empty for nothing.
    """

    name: str
    attacks: tuple[Attack, ...]
    left_out: str = ""

    def __post_init__(self) -> None:
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"attack names must differ, got {names}")
        as_they_are = [(attack.name, attack.samples) for attack in self.attacks if attack.kind == "none"]
        if names[:1] != [CLEAN] or as_they_are != [(CLEAN, None)]:
            raise ValueError(
                f"the first attack, and no other, must be the images as they are, named {CLEAN!r} and of kind 'none'"
            )


# The step counts that the masking check "more steps" compares.
SHORT, LONG = "pgd-margin-short", "pgd-margin"
# Shows whether LONG had come to rest.
LONGEST = "pgd-margin-1000"


def _attacks(
    *, steps: int, restarts: int, targets: int, queries: int, weak_steps: int, sweep_samples: int | None, thorough: bool
) -> tuple[Attack, ...]:
    """The protocol's list; ``thorough`` runs every attack on every sample."""
    late = not thorough
    exact = [
        Attack(SHORT, "pgd", steps=max(5, steps // 10)),
        Attack(LONG, "pgd", steps=steps, restarts=restarts),
        Attack("apgd-ce", "apgd", loss="cross_entropy", steps=steps, restarts=restarts),
        Attack("apgd-t", "apgd", loss="targeted_dlr", steps=steps, restarts=targets, survivors_only=late),
    ]
    if thorough:
        exact += [
            Attack("pgd-ce", "pgd", loss="cross_entropy", steps=steps, restarts=restarts),
            Attack("pgd-dlr", "pgd", loss="dlr", steps=steps, restarts=restarts),
            Attack("apgd-margin", "apgd", loss="margin", steps=steps, restarts=restarts),
            Attack("apgd-dlr", "apgd", loss="dlr", steps=steps, restarts=restarts),
        ]
    other = [
        replace(attack, name=f"{attack.name}-{short}", gradient=gradient, survivors_only=attack.survivors_only or last)
        for short, gradient, last in (("bpda", "identity", False), ("st", "straight_through", late))
        for attack in exact
        if attack.name != SHORT and (thorough or attack.name == LONG or (short == "bpda" and attack.name == "apgd-ce"))
    ]
    return (
        Attack(CLEAN, "none"),
        Attack("transfer-bare", "transfer", steps=max(weak_steps, 50), sources=("bare",)),
        Attack("random-search", "random_search", steps=weak_steps),
        *(attack for attack in other if not attack.survivors_only),
        *(attack for attack in exact if not attack.survivors_only),
        Attack(
            "transfer-purifiers",
            "transfer",
            steps=weak_steps,
            sources=("other_noise", "fewer_steps"),
            survivors_only=late,
        ),
        *(attack for attack in (*exact, *other) if attack.survivors_only),
        Attack("ere-aware", "pgd", loss="cross_entropy", steps=weak_steps, ere_weight=1.0, survivors_only=late),
        Attack("square", "square", steps=queries, survivors_only=late),
        Attack(
            "sweep", "apgd", loss="cross_entropy", steps=max(10, weak_steps // 2), samples=sweep_samples, sweep=True
        ),
    )


PRESETS = {
    "quick": Protocol(
        "quick",
        _attacks(
            steps=20, restarts=1, targets=1, queries=50, weak_steps=20, sweep_samples=32, thorough=False,
        ),
        "20 steps and one start for an attack (full: 100 and 5), one target class of APGD-T (9), 50 queries of Square "
        "(5,000); not run: AutoAttack, 1,000-step runs, the cross-entropy and DLR losses of PGD, the margin and DLR "
        "losses of APGD; some attacks only on the samples that withstood the others",
    ),
    "standard": Protocol(
        "standard",
        _attacks(
            steps=40, restarts=1, targets=2, queries=200, weak_steps=20, sweep_samples=32, thorough=False,
        ),
        "40 steps and one start for an attack (full: 100 and 5), two target classes of APGD-T (9), 200 queries of "
        "Square (5,000); not run: AutoAttack, 1,000-step runs, the cross-entropy and DLR losses of PGD, the margin and "
        "DLR losses of APGD; some attacks only on the samples that withstood the others",
    ),
    "full": Protocol(
        "full",
        (
            *_attacks(
                steps=100, restarts=5, targets=9, queries=5000, weak_steps=100, sweep_samples=256, thorough=True,
            ),
            Attack("autoattack", "autoattack", steps=5000),
            Attack(LONGEST, "pgd", steps=1000, samples=32),
        ),
    ),
}  # fmt: skip


def sweep_radii(norm: str, eps: tuple[float, ...]) -> tuple[float, ...]:
    """The radii at which "sweep" attacks are run: from half the smallest to one at which nothing can be robust."""
    if norm == "linf":  # at 0.5 any image can be made gray
        end = max(0.5, 2 * max(eps))
        beyond = [radius for radius in (1.5 * max(eps), 2.0 * max(eps)) if radius < end] + [end]
    else:
        beyond = [factor * max(eps) for factor in (2.0, 4.0, 8.0, 16.0)]
    return tuple(sorted({*eps, *(float(f"{radius:.6g}") for radius in (0.5 * min(eps), *beyond))}))
