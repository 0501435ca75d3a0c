"""Descent on the expected reconstruction error without the sharpness-aware ascent."""

from functools import partial

from pursamere.purifier import Purifier

__all__ = ["EreDescent"]

EreDescent = partial(Purifier, ascent_radius=0.0)
EreDescent.__doc__ = """Makes a :class:`pursamere.Purifier` that ascends nowhere, at half the network passes.

Takes the same arguments.
"""
