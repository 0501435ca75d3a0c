"""The protocols that ship. To add an attack, add a line here; its name and settings are part of its random seeds."""

from __future__ import annotations

from dataclasses import replace

from pursamere.attacks import APGD, PGD, AutoAttack, Clean, GradientAttack, RandomSearch, Square, Transfer

from .protocol import Protocol

__all__ = ["PRESETS"]


def _reduced(name: str, *, steps: int, targets: int, queries: int) -> Protocol:
    """The attacks that find most in the full protocol, with fewer steps; the weaker ones only on survivors."""
    attacks = (
        Clean(),
        Transfer("transfer-bare", steps=50, sources=("bare",)),
        RandomSearch("random-search", queries=20),
        PGD("pgd-margin-bpda", steps=steps, gradient="identity"),
        APGD("apgd-ce-bpda", steps=steps, gradient="identity"),
        PGD("pgd-margin-short", steps=5),
        PGD("pgd-margin", steps=steps),
        APGD("apgd-ce", steps=steps),
        Transfer("transfer-purifiers", steps=20, sources=("other_noise", "fewer_steps"), survivors_only=True),
        APGD("apgd-t", loss="targeted_dlr", steps=steps, restarts=targets, survivors_only=True),
        PGD("pgd-margin-st", steps=steps, gradient="straight_through", survivors_only=True),
        PGD("ere-aware", loss="cross_entropy", steps=20, ere_weight=1.0, survivors_only=True),
        Square("square", queries=queries, survivors_only=True),
        APGD("sweep", steps=10, samples=32, sweep=True),
    )
    left_out = (
        f"{steps} steps and one start for an attack (full: 100 and 5), {['one', 'two'][targets - 1]} target "
        f"class{'es'[: 2 * targets - 2]} of APGD-T (9), {queries} queries of Square (5,000); not run: AutoAttack, "
        "1,000-step runs, the cross-entropy and DLR losses of PGD, the margin and DLR losses of APGD; some attacks "
        "only on the samples that withstood the others"
    )
    return Protocol(name, attacks, left_out, ("pgd-margin-short", "pgd-margin"))


_GRADIENT_ATTACKS: tuple[GradientAttack, ...] = (
    PGD("pgd-margin", restarts=5),
    APGD("apgd-ce", restarts=5),
    APGD("apgd-t", loss="targeted_dlr", restarts=9),
    PGD("pgd-ce", loss="cross_entropy", restarts=5),
    PGD("pgd-dlr", loss="dlr", restarts=5),
    APGD("apgd-margin", loss="margin", restarts=5),
    APGD("apgd-dlr", loss="dlr", restarts=5),
)
_FULL = (
    Clean(),
    Transfer("transfer-bare", sources=("bare",)),
    RandomSearch("random-search"),
    *(replace(attack, name=f"{attack.name}-bpda", gradient="identity") for attack in _GRADIENT_ATTACKS),
    *(replace(attack, name=f"{attack.name}-st", gradient="straight_through") for attack in _GRADIENT_ATTACKS),
    PGD("pgd-margin-short", steps=10),
    *_GRADIENT_ATTACKS,
    Transfer("transfer-purifiers", sources=("other_noise", "fewer_steps")),
    PGD("ere-aware", loss="cross_entropy", ere_weight=1.0),
    Square("square"),
    APGD("sweep", steps=50, samples=256, sweep=True),
    AutoAttack("autoattack"),
    PGD("pgd-margin-1000", steps=1000, samples=32),
)

PRESETS = {
    "quick": _reduced("quick", steps=20, targets=1, queries=50),
    "standard": _reduced("standard", steps=40, targets=2, queries=200),
    "full": Protocol("full", _FULL, ladder=("pgd-margin-short", "pgd-margin", "pgd-margin-1000")),
}
"""The protocols "quick", "standard" and "full" by name."""
