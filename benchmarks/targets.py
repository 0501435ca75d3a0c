"""Figures with bounds."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A figure with a bound from above, or from below if not ``at_most``."""

    what: str
    figure: float
    bound: float
    at_most: bool = True

    @property
    def verdict(self) -> str:
        met = self.figure <= self.bound if self.at_most else self.figure >= self.bound
        return "met" if met else "MISSED"

    def __str__(self) -> str:
        side = "at most" if self.at_most else "at least"
        return f"{self.what}: {self.figure:.3f}, {side} {self.bound}: {self.verdict}"
