"""Words that reports, plots and the terminal share."""

from __future__ import annotations

from pursamere.attacks import Attack
from pursamere.evaluation.result import AttackResult

__all__ = ["NORMS", "accuracy_of", "gradient_of"]

NORMS = {"linf": "Linf", "l2": "L2"}
_GRADIENTS = {None: "none", "identity": "identity (BPDA)", "straight_through": "straight-through"}


def gradient_of(attack: Attack) -> str:
    """Which gradient of the model an attack follows."""
    return _GRADIENTS.get(attack.gradient, str(attack.gradient))


def accuracy_of(line: AttackResult) -> str:
    """The accuracy under an attack, or what it broke if it ran on survivors, whose accuracy would mislead."""
    if not line.attack.survivors_only:
        return str(line.share)
    attacked = int(line.attacked.sum())
    return f"broke {attacked - int((line.correct & line.attacked).sum())} of {attacked} survivors"
