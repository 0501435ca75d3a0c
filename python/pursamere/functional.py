"""The compiled ops with argument checks: one kernel call and one pass over memory each.

Images ``x`` are [B, *], with any shape per sample; tensors with a value per draw are [K, B, *]. Supported dtypes are
float32, float64, float16 and bfloat16; the network's tensors may be float16 or bfloat16 while images are float32.
Arithmetic is in float32 (float64 for float64) and in one fixed order, so that a sample's result has the same bits in
any batch. Inputs may have any memory format; results are contiguous. All ops are differentiable twice.

Equations (Mk) are those of ``docs/mathematics.md``, after PurSAMERE (arXiv 2602.06269).
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ._run_op import may_be_differentiated, run_op
from ._validation import (
    FLOATING_DTYPES,
    check_choice,
    check_nonnegative,
    check_positive,
    check_real,
    check_same_device,
    check_same_shape,
    check_supported_device,
    check_tensor,
)
from .denoisers.protocol import Prediction
from .noise import GaussianNoise, NoiseBank

__all__ = [
    "NORMS",
    "STEP_RULES",
    "ResidualTerms",
    "accumulate_ascend",
    "accumulate_ascend_perturb",
    "accumulate_descend",
    "accumulate_descend_perturb",
    "perturb",
    "residual",
]

STEP_RULES = ("unit", "gradient", "sign")
"""What a step takes of the gradient (u in M8)."""
NORMS = ("linf", "l2")
"""The norms of balls."""
PREDICTIONS = get_args(Prediction)


def perturb(
    x: Tensor,
    sigma: float,
    noise: GaussianNoise,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    """Return the noisy images y_k = scale * (x + sigma * xi_k) + shift (M6), [K, B, *].

    Args:
        x: images [B, *].
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the fixed draws xi_k; the same for every sample. A :class:`pursamere.noise.NoiseBank` is read, which is
            faster than generating the noise; the bits are the same.
        dtype: dtype of the result, for a network that works in half precision; default: that of ``x``.
        scale: converts pixels to the network's units, together with ``shift``; positive.
        shift: a real number.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: ``sigma`` or ``scale`` is not positive and finite, the device of ``x`` is not supported, or a bank
            has another shape or device than ``x``.
    """
    _check_images(x)
    _check_noise(noise)
    bank = _checked_bank(noise, x)
    sigma, scale, shift = _checked_perturbation(x, sigma, dtype, scale, shift)
    y: Tensor = run_op(
        torch.ops.pursamere.perturb.default,
        x,
        sigma,
        noise.draws,
        noise.seed,
        noise.antithetic,
        dtype,
        scale,
        shift,
        bank,
    )
    return y


class ResidualTerms(NamedTuple):
    """The results of :func:`residual`, ``None`` where not wanted."""

    cotangent: Tensor | None  # [K, B, *]
    drift: Tensor | None  # [B, *]
    ere: Tensor | None  # [B]


def residual(
    x: Tensor,
    prediction: Tensor,
    sigma: float,
    noise: GaussianNoise,
    *,
    kind: str = "denoised",
    scale: float = 1.0,
    gain: float = 1.0,
    shift: float = 0.0,
    input_scale: float = 1.0,
    with_cotangent: bool = True,
    with_drift: bool = True,
    with_ere: bool = True,
) -> ResidualTerms:
    """Reduce a network's output to the expected reconstruction error and its gradients (M6, M7).

    r_k = x - D(x + sigma * xi_k), where D follows from the prediction.

    Args:
        x: images [B, *].
        prediction: the network's output at the noisy images, [K, B, *].
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the draws of the noisy images.
        kind: the prediction: the "denoised" image, the "score" s with D = y + sigma^2 s, or the "noise" eps with
            D = y - sigma eps.
        scale: multiplies the network's output, before it is taken for that prediction.
        gain: multiplies what the prediction denoises to; with ``shift``, for a network in other units than pixels.
        shift: added to it: D = gain * D_kind(y, scale * prediction) + shift.
        input_scale: factor of the cotangent; with that of :func:`perturb`, the gradient with respect to the network's
            input becomes the gradient with respect to y.
        with_cotangent: whether to compute the cotangent, half of the memory traffic.
        with_drift: whether to compute the drift.
        with_ere: whether to compute R.

    Returns:
        ``cotangent`` [K, B, *], the derivative of R with respect to the prediction. ``drift`` [B, *],
        (2/K) sum_k r_k: the direction of M10 and, for a "denoised" prediction, the derivative of R with respect to x at
        a fixed prediction (for the other kinds that is ``1 - gain`` times the drift). ``ere`` [B],
        R = (1/K) sum_k ||r_k||^2. ``None`` for what is not wanted.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an argument is out of range.
    """
    _check_images(x)
    _check_noise(noise)
    _check_per_draw("prediction", prediction, x)
    if prediction.shape[0] != noise.draws:
        raise ValueError(f"prediction must have noise.draws = {noise.draws} draws, got {prediction.shape[0]}")
    cotangent, drift, ere = run_op(
        torch.ops.pursamere.residual.default,
        x,
        prediction,
        check_choice("kind", kind, PREDICTIONS),
        check_positive("sigma", sigma),
        noise.seed,
        noise.antithetic,
        check_real("scale", scale),
        check_real("gain", gain),
        check_real("shift", shift),
        check_positive("input_scale", input_scale),
        with_cotangent,
        with_drift,
        with_ere,
    )
    return ResidualTerms(
        cotangent if with_cotangent else None, drift if with_drift else None, ere if with_ere else None
    )


def accumulate_ascend(
    x: Tensor, per_draw: Tensor, direct: Tensor | None, ascent_radius: float
) -> tuple[Tensor, Tensor]:
    """Sum a gradient over the draws and ascend along it (M8).

    Args:
        x: images [B, *].
        per_draw: the gradient's terms, [K, B, *], summed in the order of the draws.
        direct: the term without draws, [B, *], or ``None``.
        ascent_radius: an L2 length per sample in pixel units, at least 0.

    Returns:
        ``point`` [B, *], x + ascent_radius * g / ||g||, and ``norm`` [B], ||g||. If the sum of squares of g is zero (in
        float32 it underflows for norms below about 1e-22), the point is x; if it overflows, the point is NaN.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an argument is out of range.
    """
    _check_accumulated(x, per_draw, direct)
    point, norm = run_op(
        torch.ops.pursamere.accumulate_ascend.default,
        x,
        per_draw,
        direct,
        check_nonnegative("ascent_radius", ascent_radius),
    )
    return point, norm


def accumulate_ascend_perturb(
    x: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    ascent_radius: float,
    sigma: float,
    noise: GaussianNoise,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`accumulate_ascend`, and :func:`perturb` of its point: the same bits by one kernel.

    The kernel needs a :class:`pursamere.noise.NoiseBank` and a result in the dtype of ``per_draw``, and has no
    derivative. Otherwise the two functions are called.

    Args:
        x: images [B, *].
        per_draw: the gradient's terms, [K, B, *].
        direct: the term without draws, [B, *], or ``None``.
        ascent_radius: an L2 length per sample in pixel units, at least 0.
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the fixed draws.
        dtype: dtype of the perturbed point; default: that of ``per_draw``.
        scale: converts pixels to the network's units, see :func:`perturb`.
        shift: likewise.

    Returns:
        ``point`` [B, *], ``norm`` [B], and the perturbed ``point``, [noise.draws, B, *].

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an argument is out of range.
    """
    bank = _fused_bank(x, per_draw, direct, noise, dtype)
    sigma, scale, shift = _checked_perturbation(x, sigma, dtype, scale, shift)
    if bank is None:
        point, norm = accumulate_ascend(x, per_draw, direct, ascent_radius)
        return point, norm, perturb(point, sigma, noise, dtype=dtype or per_draw.dtype, scale=scale, shift=shift)
    point, norm, y = run_op(
        torch.ops.pursamere.accumulate_ascend_perturb.default,
        x,
        per_draw,
        direct,
        check_nonnegative("ascent_radius", ascent_radius),
        bank,
        sigma,
        noise.antithetic,
        scale,
        shift,
    )
    return point, norm, y


def accumulate_descend(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    *,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
) -> Tensor:
    """Sum a gradient over the draws and descend along it, inside a ball around the purifier's input (M8).

    Args:
        x: images [B, *].
        start: the purifier's input and center of the ball, [B, *].
        per_draw: the gradient's terms, [K, B, *], summed in the order of the draws.
        direct: the term without draws, [B, *], or ``None``.
        step_rule: "unit" moves by ``step_size`` in L2 length, "gradient" by ``step_size`` times the gradient, "sign" by
            ``step_size`` per pixel.
        step_size: at least 0.
        norm: the norm of the ball, "linf" or "l2".
        radius: the radius of the ball in pixel units, at least 0; infinity for no ball, only the pixel range.

    Returns:
        clip_[0,1](P(x - step_size * u(g))), [B, *].

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an argument is out of range.
    """
    _check_accumulated(x, per_draw, direct)
    _check_alike("start", start, x)
    result: Tensor = run_op(
        torch.ops.pursamere.accumulate_descend.default,
        x,
        start,
        per_draw,
        direct,
        check_choice("step_rule", step_rule, STEP_RULES),
        check_nonnegative("step_size", step_size),
        check_choice("norm", norm, NORMS),
        check_nonnegative("radius", radius, infinite=True),
    )
    return result


def accumulate_descend_perturb(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    sigma: float,
    noise: GaussianNoise,
    *,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`accumulate_descend`, and :func:`perturb` of its result: the same bits by one kernel.

    The conditions are those of :func:`accumulate_ascend_perturb`.

    Args:
        x: images [B, *].
        start: the purifier's input and center of the ball, [B, *].
        per_draw: the gradient's terms, [K, B, *].
        direct: the term without draws, [B, *], or ``None``.
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the fixed draws.
        step_rule: "unit", "gradient" or "sign", see :func:`accumulate_descend`.
        step_size: at least 0.
        norm: the norm of the ball, "linf" or "l2".
        radius: the radius of the ball in pixel units, at least 0.
        dtype: dtype of the perturbed images; default: that of ``per_draw``.
        scale: converts pixels to the network's units, see :func:`perturb`.
        shift: likewise.

    Returns:
        The next images [B, *], and those perturbed, [noise.draws, B, *].

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an argument is out of range.
    """
    bank = _fused_bank(x, per_draw, direct, noise, dtype, start)
    sigma, scale, shift = _checked_perturbation(x, sigma, dtype, scale, shift)
    if bank is None:
        after = accumulate_descend(
            x, start, per_draw, direct, step_rule=step_rule, step_size=step_size, norm=norm, radius=radius
        )
        return after, perturb(after, sigma, noise, dtype=dtype or per_draw.dtype, scale=scale, shift=shift)
    after, y = run_op(
        torch.ops.pursamere.accumulate_descend_perturb.default,
        x,
        start,
        per_draw,
        direct,
        check_choice("step_rule", step_rule, STEP_RULES),
        check_nonnegative("step_size", step_size),
        check_choice("norm", norm, NORMS),
        check_nonnegative("radius", radius, infinite=True),
        bank,
        sigma,
        noise.antithetic,
        scale,
        shift,
    )
    return after, y


def _check_images(x: Tensor) -> None:
    check_tensor("x", x)
    check_supported_device("x", x.device)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, got a scalar")


def _check_noise(noise: GaussianNoise) -> None:
    if not isinstance(noise, GaussianNoise):
        raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")


def _checked_perturbation(
    x: Tensor, sigma: float, dtype: torch.dtype | None, scale: float, shift: float
) -> tuple[float, float, float]:
    if dtype is not None and dtype not in FLOATING_DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    if dtype not in (None, x.dtype) and (x.dtype != torch.float32 or dtype == torch.float64):
        raise TypeError(f"dtype must be that of x, {x.dtype}, or a half type beside float32, got {dtype}")
    return check_positive("sigma", sigma), check_positive("scale", scale), check_real("shift", shift)


def _checked_bank(noise: GaussianNoise, x: Tensor) -> Tensor | None:
    """Return the values of a bank, which must be those for ``x``; ``None`` for noise without a bank."""
    if not isinstance(noise, NoiseBank):
        return None
    check_same_device("noise", noise.values, "x", x)
    if noise.shape != x.shape[1:]:
        raise ValueError(f"noise must be a bank for samples of shape {list(x.shape[1:])}, got {list(noise.shape)}")
    return noise.values


def _fused_bank(
    x: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    noise: GaussianNoise,
    dtype: torch.dtype | None,
    start: Tensor | None = None,
) -> Tensor | None:
    """Check tensors and noise; return the bank for an op that also perturbs, or ``None`` if it cannot be used."""
    _check_accumulated(x, per_draw, direct)
    if start is not None:
        _check_alike("start", start, x)
    _check_noise(noise)
    bank = _checked_bank(noise, x)
    separate = dtype not in (None, per_draw.dtype) or may_be_differentiated((x, start, per_draw, direct))
    return None if separate else bank


def _check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    check_tensor(name, tensor)
    check_same_device(name, tensor, "x", x)
    check_same_shape(name, tensor, "x", x)
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")


def _check_per_draw(name: str, per_draw: Tensor, x: Tensor) -> None:
    check_tensor(name, per_draw)
    check_same_device(name, per_draw, "x", x)
    if per_draw.shape[1:] != x.shape or per_draw.dim() != x.dim() + 1 or per_draw.shape[0] < 1:
        raise ValueError(f"{name} must have shape [draws, *{list(x.shape)}], got {list(per_draw.shape)}")
    if per_draw.dtype != x.dtype and (x.dtype != torch.float32 or per_draw.dtype == torch.float64):
        raise TypeError(
            f"{name} must have the dtype of x, {x.dtype}, or a half type beside float32, got {per_draw.dtype}"
        )


def _check_accumulated(x: Tensor, per_draw: Tensor, direct: Tensor | None) -> None:
    _check_images(x)
    _check_per_draw("per_draw", per_draw, x)
    if direct is not None:
        _check_alike("direct", direct, x)
