"""The intervals of proportions."""

import math
from types import SimpleNamespace

import pytest
from scipy import stats

from pursamere.evaluation.result import Proportion, Result, wilson_interval


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (218, 256), (1, 1), (0, 1)])
def test_wilson_interval_against_scipy(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson_interval(correct, count)
    assert 0 <= low <= correct / count <= high <= 1


def test_wilson_interval_known_value():
    """Agresti and Coull (1998) style example by hand: 8 of 10 at z = 2 is (0.8 + 0.2 +- 2 sqrt(0.016 + 0.01)) / 1.4."""
    half = 2 * math.sqrt(0.8 * 0.2 / 10 + 4 / 400)
    assert wilson_interval(8, 10, z=2.0) == pytest.approx(((1.0 - half) / 1.4, (1.0 + half) / 1.4))


@pytest.mark.parametrize(("correct", "count"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_interval_of_nonsense(correct, count):
    with pytest.raises(ValueError, match="correct"):
        wilson_interval(correct, count)


def test_what_print_shows_is_short():
    share = Proportion(8, 10)
    assert repr(share) == "Proportion(8/10: 0.800 (0.490 - 0.943))"
    result = Result(
        config={"long": "x" * 1000},
        environment={},
        norm="linf",
        eps=(8 / 255,),
        lines=[SimpleNamespace(eps=8 / 255, attack=SimpleNamespace(sweep=False))],
        clean=share,
        worst_case={8 / 255: share},
        withstood={},
        checks=[],
        skipped={},
    )
    assert repr(result) == (
        "Result(worst case per sample over all attacks (linf): 0.800 (0.490 - 0.943) at eps 0.03137 (8/255); clean "
        "0.800 (0.490 - 0.943); 0 masking checks pass)"
    )
