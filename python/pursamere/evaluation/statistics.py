"""Uncertainty of an accuracy."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


def wilson_interval(correct: int, count: int, z: float = _Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion ``correct / count``, 95 % by default.

    Unlike the normal approximation it is never empty and never leaves [0, 1], also at 0 or ``count`` correct.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"expected 0 <= correct <= count and count >= 1, got {correct} of {count}")
    share, weight = correct / count, z * z / count
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    # Exact at the ends, where rounding would leave a few ulp.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == count else center + half)
