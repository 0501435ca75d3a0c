"""The interface of denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, cast, get_args

import torch
from torch import Tensor

from pursamere._validation import check_choice, check_nonnegative
from pursamere.determinism.network import is_more_than_its_methods

Prediction = Literal["denoised", "score", "noise"]
"""What the network of a denoiser predicts."""


class Denoiser(Protocol):
    """Any callable ``(y, sigma) -> E[X | X + sigma * Xi = y]`` with ``Xi ~ N(0, I)``, or an approximation of it.

    ``y`` is a floating-point tensor [N, C, H, W] in pixel space, with range [0, 1] before the noise is added. ``sigma``
    is the standard deviation of the noise in the same units, a positive float. The result has the shape of ``y``.
    Rows must be independent.

    Optional attributes:
        prediction: ``"denoised"``, ``"score"`` or ``"noise"``, together with ``predict(y, sigma)``, which returns the
            raw prediction: the denoised image D, the score s with D = y + sigma^2 * s, or the noise eps with
            D = y - sigma * eps.
        network_call: ``(sigma, dtype)``, returns how to compute D from images of this dtype by the network alone, as a
            :class:`NetworkCall`, or ``None`` to be called as ``denoiser(y, sigma)``. Saves the conversions between
            pixels and the network's units.
        image_shape: (C, H, W), if it takes images of this shape only; for messages.
        sigma_range: the lowest and highest supported ``sigma``, in pixel units. Default noise levels are clipped to it,
            and :class:`pursamere.Purifier` warns where its ``sigma`` is outside.
    """

    def __call__(self, y: Tensor, sigma: float, /) -> Tensor:
        """Return the posterior mean [N, C, H, W] at ``y``."""
        ...


class InputOptions(TypedDict):
    """Options of the ops that perturb, see :func:`pursamere.functional.perturb`."""

    dtype: torch.dtype
    scale: float
    shift: float


class NetworkCall(NamedTuple):
    """A denoiser at one noise level, as a network between two affine maps.

    ``q = predict(input_scale * y + input_shift, level)``, with the input in ``dtype``, and
    ``D(y, sigma) = gain * D_kind(y, scale * q) + shift``, where ``D_kind`` is what a denoiser with this ``prediction``
    denoises to.

    Attributes:
        kind: "denoised", "score" or "noise".
        predict: ``(u [N, C, H, W], level) -> [N, C, H, W]``, in the dtype of ``u`` or of the images. The same function
            in every call, or ``Execution(compile=True)`` compiles it again.
        level: the second argument of ``predict``.
        dtype: dtype of ``u``: that of the images or, if those are float32, a half type.
        input_scale: positive.
        input_shift: a real number.
        scale: a real number.
        gain: a real number.
        shift: a real number.
    """

    kind: Prediction
    predict: Callable[[Tensor, float], Tensor]
    level: float
    dtype: torch.dtype
    input_scale: float = 1.0
    input_shift: float = 0.0
    scale: float = 1.0
    gain: float = 1.0
    shift: float = 0.0

    @property
    def input_options(self) -> InputOptions:
        """How :func:`pursamere.functional.perturb` makes the network's input."""
        return {"dtype": self.dtype, "scale": self.input_scale, "shift": self.input_shift}

    @property
    def image_slope(self) -> float:
        """The derivative of x - D(x + sigma * xi) with respect to x at a fixed prediction."""
        return 1.0 if self.kind == "denoised" else 1.0 - self.gain


def network_call_of(denoiser: Denoiser, sigma: float, dtype: torch.dtype) -> NetworkCall:
    """Return how to run ``denoiser`` on images of this dtype.

    Raises what :func:`prediction_of` raises.
    """
    kind, predict = prediction_of(denoiser)
    method: Any = None if is_more_than_its_methods(denoiser) else getattr(denoiser, "network_call", None)
    call: NetworkCall | None = None if method is None else method(sigma, dtype)
    return NetworkCall(kind, predict, sigma, dtype) if call is None else call


def prediction_of(denoiser: Denoiser) -> tuple[Prediction, Callable[[Tensor, float], Tensor]]:
    """Return what ``denoiser`` predicts and the function that predicts it.

    A plain callable predicts the denoised image, so it gives ``("denoised", denoiser)``; so does a module with hooks or
    after ``torch.compile``, which ``predict`` would leave out.

    Raises:
        TypeError: ``denoiser`` is not callable, or has a ``prediction`` but no callable ``predict``.
        ValueError: ``prediction`` is not one of the three kinds.
    """
    if not callable(denoiser):
        raise TypeError(f"denoiser must be callable as denoiser(y, sigma), got {type(denoiser).__name__}")
    if isinstance(denoiser, type):
        raise TypeError(f"denoiser must be an instance, got the class {denoiser.__name__}")
    kind: Any = getattr(denoiser, "prediction", None)
    if kind is None or is_more_than_its_methods(denoiser):
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
    """Return ``denoiser.sigma_range``, or (0, infinity) if it has none.

    Raises:
        TypeError: ``sigma_range`` is not a pair of real numbers.
        ValueError: ``sigma_range`` is negative or decreasing.
    """
    found: Any = getattr(denoiser, "sigma_range", None)
    if found is None:
        return 0.0, float("inf")
    found = found.tolist() if hasattr(found, "tolist") else found  # a tensor or an array
    if not isinstance(found, Sequence) or len(found) != 2:
        raise TypeError(f"denoiser.sigma_range must hold two numbers, the lowest and the highest sigma, got {found!r}")
    low, high = (check_nonnegative("denoiser.sigma_range", bound, infinite=True) for bound in found)
    if not low <= high:
        raise ValueError(f"denoiser.sigma_range must not decrease, got {found!r}")
    return low, high
