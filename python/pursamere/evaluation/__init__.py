"""How robust a model is, measured by a protocol of attacks and believed only in the worst case."""

from .folder import IncompleteRunError
from .protocol import PRESETS, Attack, Protocol
from .result import AttackResult, MaskingCheck, Proportion, Result

__all__ = [
    "PRESETS",
    "Attack",
    "AttackResult",
    "IncompleteRunError",
    "MaskingCheck",
    "Proportion",
    "Protocol",
    "Result",
]
