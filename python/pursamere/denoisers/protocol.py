"""What the purifier asks of a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast, get_args

from torch import Tensor

from pursamere._validation import check_choice, check_nonnegative

Prediction = Literal["denoised", "score", "noise"]


class Denoiser(Protocol):
    """Any callable ``(y, sigma) -> E[X | X + sigma * Xi = y]`` with ``Xi ~ N(0, I)``, or an approximation of it.

    ``y`` is a floating tensor [N, C, H, W] in pixel space, whose range is [0, 1] before the noise is added; ``sigma``
    is the standard deviation of the noise in the same units, a positive float. The result has the shape of ``y``.
    Rows must not influence one another.

    A denoiser may also carry ``prediction``, one of ``"denoised"``, ``"score"`` and ``"noise"``, and
    ``predict(y, sigma)``, the raw output of that kind: the denoised image D itself, the score s with
    D = y + sigma^2 * s, or the noise eps with D = y - sigma * eps.

    It may carry ``sigma_range``, the lowest and the highest ``sigma`` that it was made for, in pixel units. Defaults of
    noise levels are clipped to it.
    """

    def __call__(self, y: Tensor, sigma: float, /) -> Tensor:
        """Return the posterior mean [N, C, H, W] at ``y``."""
        ...


def prediction_of(denoiser: Denoiser) -> tuple[Prediction, Callable[[Tensor, float], Tensor]]:
    """Return what ``denoiser`` predicts and the function that predicts it.

    A plain callable predicts the denoised image, so the answer for it is ``("denoised", denoiser)``.

    Raises:
        TypeError: ``denoiser`` is not callable, or has a ``prediction`` but no callable ``predict``.
        ValueError: its ``prediction`` is none of the three kinds.
    """
    if not callable(denoiser):
        raise TypeError(f"denoiser must be callable as denoiser(y, sigma), got {type(denoiser).__name__}")
    kind: Any = getattr(denoiser, "prediction", None)
    if kind is None:
        return "denoised", denoiser
    check_choice("denoiser.prediction", kind, get_args(Prediction))
    predict: Any = getattr(denoiser, "predict", None)
    if not callable(predict):
        raise TypeError(
            f"denoiser.predict must be callable as predict(y, sigma), since denoiser.prediction is {kind!r}, "
            f"got {type(predict).__name__}"
        )
    return cast(Prediction, kind), predict


def sigma_range_of(denoiser: Denoiser) -> tuple[float, float]:
    """Return the lowest and the highest noise level that ``denoiser`` was made for, in pixel units.

    (0, infinity) for one without ``sigma_range``.

    Raises:
        TypeError: its ``sigma_range`` holds something else than real numbers.
        ValueError: its ``sigma_range`` is no range of noise levels.
    """
    found: Any = getattr(denoiser, "sigma_range", None)
    if found is None:
        return 0.0, float("inf")
    if not isinstance(found, Sequence) or len(found) != 2:
        raise TypeError(f"denoiser.sigma_range must hold two numbers, the lowest and the highest sigma, got {found!r}")
    low, high = (check_nonnegative("denoiser.sigma_range", bound, infinite=True) for bound in found)
    if not low <= high:
        raise ValueError(f"denoiser.sigma_range must not decrease, got {found!r}")
    return low, high
