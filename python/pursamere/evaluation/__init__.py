"""Robustness evaluation: a protocol of attacks, the worst case per sample, and checks for gradient masking."""

from pursamere.attacks import Attack

from .folder import IncompleteRunError
from .paired import PairedDifference, compare
from .presets import PRESETS
from .protocol import Protocol
from .result import AttackResult, MaskingCheck, Proportion, Result

__all__ = [
    "PRESETS",
    "Attack",
    "AttackResult",
    "IncompleteRunError",
    "MaskingCheck",
    "PairedDifference",
    "Proportion",
    "Protocol",
    "Result",
    "compare",
]
