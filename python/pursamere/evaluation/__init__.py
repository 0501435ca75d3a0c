"""How robust a model is, measured by a protocol of attacks and believed only in the worst case."""

from .checks import MaskingCheck
from .evaluate import IncompleteRunError, evaluate
from .protocol import PRESETS, Attack, Protocol
from .summary import AttackResult, Proportion, Result

__all__ = [
    "PRESETS",
    "Attack",
    "AttackResult",
    "IncompleteRunError",
    "MaskingCheck",
    "Proportion",
    "Protocol",
    "Result",
    "evaluate",
]
