"""How robust a model is, measured by a protocol of attacks and believed only in the worst case."""

from .checks import Check
from .evaluate import IncompleteRunError, evaluate
from .protocol import PRESETS, Attack, Protocol
from .summary import Line, Result, Share

__all__ = ["PRESETS", "Attack", "Check", "IncompleteRunError", "Line", "Protocol", "Result", "Share", "evaluate"]
