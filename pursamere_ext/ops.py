"""Shapes and derivatives of the ops, one section for each.

Derivatives consist of differentiable operations, so that they can be differentiated again. Schemas are in
``csrc/ops.h``. Notation: g is the gradient summed over the draws, v the incoming gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .registration import refuse_derivative, register

__all__: list[str] = []

_Context = Any


# noise


def _noise_fake(like: Tensor, draws: int, seed: int, antithetic: bool) -> Tensor:
    return like.new_empty((draws, *like.shape))


register("noise", _noise_fake)


# perturb: y_k = scale (x + sigma xi_k) + shift


def _perturb_fake(
    x: Tensor,
    sigma: float,
    draws: int,
    seed: int,
    antithetic: bool,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    bank: Tensor | None = None,
) -> Tensor:
    return x.new_empty((draws, *x.shape), dtype=dtype or x.dtype)


def _perturb_setup(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.x_dtype, ctx.scale = inputs[0].dtype, inputs[6]
    if inputs[8] is not None and ctx.needs_input_grad[8]:
        raise NotImplementedError("pursamere::perturb has no derivative with respect to bank")


def _perturb_backward(ctx: _Context, v: Tensor) -> tuple[Any, ...]:
    v_sum = _sum_draws(v, ctx.x_dtype)
    return v_sum if ctx.scale == 1.0 else v_sum * ctx.scale, *[None] * 8


register("perturb", _perturb_fake, _perturb_setup, _perturb_backward)


# residual: r_k = a x + b prediction_k + noise; cotangent_k = input_scale (2 b / K) r_k, drift = (2/K) sum_k r_k,
# ere = (1/K) sum_k ||r_k||^2


class _ResidualOptions(NamedTuple):
    """The op's arguments after its tensors."""

    kind: str
    sigma: float
    seed: int
    antithetic: bool
    scale: float = 1.0
    gain: float = 1.0
    shift: float = 0.0
    input_scale: float = 1.0
    with_cotangent: bool = True
    with_drift: bool = True
    with_ere: bool = True

    @property
    def slopes(self) -> tuple[float, float]:
        """The derivatives (a, b) of every residual with respect to x and to its prediction."""
        slope = {"denoised": -1.0, "score": -self.sigma * self.sigma, "noise": self.sigma}[self.kind]
        return 1.0 if self.kind == "denoised" else 1.0 - self.gain, self.gain * self.scale * slope


def _residual_fake(x: Tensor, prediction: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    options = _ResidualOptions(*arguments)
    return (
        _contiguous_like(prediction) if options.with_cotangent else prediction.new_empty(0),
        _contiguous_like(x) if options.with_drift else x.new_empty(0),
        _one_per_sample(x) if options.with_ere else x.new_empty(0),
    )


def _residual_setup(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, prediction, *arguments = inputs
    ctx.set_materialize_grads(False)
    ctx.options = _ResidualOptions(*arguments)
    ctx.draws, ctx.dtypes = len(prediction), (prediction.dtype, x.dtype)
    # The cotangent and the drift are linear: their derivative needs no values.
    ctx.save_for_backward(*((x, prediction) if ctx.options.with_ere else ()))


def _residual_backward(
    ctx: _Context, v_cotangent: Tensor | None, v_drift: Tensor | None, v_ere: Tensor | None
) -> tuple[Any, ...]:
    options: _ResidualOptions = ctx.options
    a, b = options.slopes
    factors = _Mix(options.input_scale * b, 1.0, b * 2.0 / ctx.draws, a * 2.0 / ctx.draws)
    v_cotangent = v_cotangent if options.with_cotangent else None
    v_drift = v_drift if options.with_drift else None
    v_prediction, v_x = _mix(v_cotangent, v_drift, factors, ctx.draws, ctx.dtypes)
    if v_ere is not None and options.with_ere:
        x, prediction = ctx.saved_tensors
        again = options._replace(input_scale=1.0, with_drift=a != 0.0, with_ere=False, with_cotangent=True)
        cotangent, drift, _ = torch.ops.pursamere.residual.default(x, prediction, *again)
        # In the precision of v_ere: a gradient scaler's factor is too large for float16.
        v_prediction = _plus(v_prediction, (_columns(v_ere, x) * cotangent).to(cotangent.dtype))
        v_x = _plus(v_x, (a * _columns(v_ere, x) * drift).to(drift.dtype)) if a != 0.0 else v_x
    return v_x, v_prediction, *[None] * len(options)


register("residual", _residual_fake, _residual_setup, _residual_backward)


# sum_draws: the sum over the draws


def _sum_draws_fake(per_draw: Tensor, dtype: torch.dtype) -> Tensor:
    return per_draw.new_empty(per_draw.shape[1:], dtype=dtype)


def _sum_draws_setup(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.draws, ctx.dtype = inputs[0].shape[0], inputs[0].dtype


def _sum_draws_backward(ctx: _Context, v: Tensor) -> tuple[Any, ...]:
    return v.to(ctx.dtype).expand(ctx.draws, *v.shape), None


register("sum_draws", _sum_draws_fake, _sum_draws_setup, _sum_draws_backward)


# residual_backward: u_k = g per_draw_k + h shared; out_k = s u_k, sum = t sum_k u_k


class _Mix(NamedTuple):
    g: float
    h: float
    s: float
    t: float


def _mix(
    per_draw: Tensor | None, shared: Tensor | None, factors: _Mix, draws: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``residual_backward``'s results, where ``None`` stands for zeros, in (network, image) ``dtypes``."""
    g, h, s, t = factors
    network, image = dtypes
    if per_draw is not None and shared is not None:
        out, total = torch.ops.pursamere.residual_backward.default(per_draw, shared, *factors)
        return out, total if t != 0.0 else None
    if per_draw is not None:
        return (s * g) * per_draw, (t * g) * _sum_draws(per_draw, image) if t != 0.0 else None
    if shared is not None:
        out = ((s * h) * shared).to(network).expand(draws, *shared.shape)
        return out, (t * h * draws) * shared if t != 0.0 else None
    return None, None


def _residual_backward_fake(per_draw: Tensor, shared: Tensor, *factors: float) -> tuple[Tensor, Tensor]:
    return _contiguous_like(per_draw), _contiguous_like(shared)


def _residual_backward_setup(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    per_draw, shared, *factors = inputs
    ctx.set_materialize_grads(False)
    ctx.factors = _Mix(*factors)
    ctx.draws, ctx.dtypes = len(per_draw), (per_draw.dtype, shared.dtype)


def _residual_backward_backward(ctx: _Context, v_out: Tensor | None, v_sum: Tensor | None) -> tuple[Any, ...]:
    g, h, s, t = ctx.factors
    return *_mix(v_out, v_sum, _Mix(s, t, g, h), ctx.draws, ctx.dtypes), *[None] * 4


register("residual_backward", _residual_backward_fake, _residual_backward_setup, _residual_backward_backward)


# accumulate_ascend: point = x + ascent_radius g / ||g||, norm = ||g||


def _ascend_fake(x: Tensor, per_draw: Tensor, direct: Tensor | None, ascent_radius: float) -> tuple[Tensor, Tensor]:
    return _contiguous_like(x), _one_per_sample(x)


def _ascend_setup(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, per_draw, direct, ctx.ascent_radius = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(per_draw, direct)


def _ascend_backward(ctx: _Context, v_point: Tensor | None, v_norm: Tensor | None) -> tuple[Any, ...]:
    per_draw, direct = ctx.saved_tensors
    unit, inverse = _unit(_summed(per_draw, direct))
    v_gradient = None
    if v_point is not None:
        v_gradient = ctx.ascent_radius * _unit_vjp(unit, inverse, v_point.to(unit.dtype))
    if v_norm is not None:
        v_gradient = _plus(v_gradient, _columns(v_norm, unit) * unit)
    if v_gradient is None:
        return None, None, None, None
    return v_point, *_to_terms(v_gradient, per_draw, direct), None


register("accumulate_ascend", _ascend_fake, _ascend_setup, _ascend_backward)


# accumulate_ascend_perturb: accumulate_ascend, then perturb. For where no derivative is needed, see
# pursamere.functional.


def _ascend_perturb_fake(
    x: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    ascent_radius: float,
    bank: Tensor,
    sigma: float,
    antithetic: bool,
    scale: float = 1.0,
    shift: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return *_ascend_fake(x, per_draw, direct, ascent_radius), _perturbed_fake(x, per_draw, bank, antithetic)


register("accumulate_ascend_perturb", _ascend_perturb_fake, refuse_derivative, refuse_derivative)


# accumulate_descend: next = clip(P(moved)), moved = x - step_size u(g)


def _descend_fake(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
) -> Tensor:
    return _contiguous_like(x)


def _descend_setup(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, start, per_draw, direct, ctx.step_rule, ctx.step_size, ctx.norm, ctx.radius = inputs
    ctx.save_for_backward(x, start, per_draw, direct)


def _descend_backward(ctx: _Context, v: Tensor) -> tuple[Any, ...]:
    x_stored, start_stored, per_draw, direct = ctx.saved_tensors
    gradient = _summed(per_draw, direct)
    x, start = x_stored.to(gradient.dtype), start_stored.to(gradient.dtype)
    if ctx.step_rule == "unit":
        direction, inverse = _unit(gradient)
    else:
        direction = gradient if ctx.step_rule == "gradient" else gradient.sign()
    moved = x - ctx.step_size * direction
    if ctx.norm == "linf":
        v_moved, v_start = _linf_vjp(moved, start, ctx.radius, v.to(gradient.dtype))
    else:
        v_moved, v_start = _l2_vjp(moved, start, ctx.radius, v.to(gradient.dtype))
    if ctx.step_rule == "gradient":
        v_gradient = -ctx.step_size * v_moved
    elif ctx.step_rule == "unit":
        v_gradient = -ctx.step_size * _unit_vjp(direction, inverse, v_moved)
    else:
        v_gradient = torch.zeros_like(v_moved)
    terms = _to_terms(v_gradient, per_draw, direct)
    return v_moved.to(x_stored.dtype), v_start.to(x_stored.dtype), *terms, None, None, None, None


def _linf_vjp(moved: Tensor, start: Tensor, radius: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return v with respect to ``moved`` and ``start``, through the ball around ``start`` and the box."""
    projected = moved.clamp(start - radius, start + radius)
    v = _in_box(v, projected)
    v_moved = v * (moved == projected)
    return v_moved, v - v_moved


def _l2_vjp(moved: Tensor, start: Tensor, radius: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the L2 ball."""
    if radius > torch.finfo(v.dtype).max:  # no ball: below, infinity times zero would make a second derivative NaN
        return _in_box(v, moved), torch.zeros_like(v)
    offset = moved - start
    inside = _sample_dot(offset, offset) <= radius * radius
    outward, inverse_distance = _unit(torch.where(inside, 1.0, offset))  # finite, also in the derivatives, if not used
    v = _in_box(v, torch.where(inside, moved, start + radius * outward))
    on_sphere = radius * _unit_vjp(outward, inverse_distance, v)
    return torch.where(inside, v, on_sphere), torch.where(inside, 0.0, v - on_sphere)


def _in_box(v: Tensor, projected: Tensor) -> Tensor:
    """Return the part of v that the clip to [0, 1] lets through."""
    return v * (projected == projected.clamp(0, 1))


register("accumulate_descend", _descend_fake, _descend_setup, _descend_backward)


# accumulate_descend_perturb: accumulate_descend, then perturb. For where no derivative is needed.


def _descend_perturb_fake(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
    bank: Tensor,
    sigma: float,
    antithetic: bool,
    scale: float = 1.0,
    shift: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(x), _perturbed_fake(x, per_draw, bank, antithetic)


register("accumulate_descend_perturb", _descend_perturb_fake, refuse_derivative, refuse_derivative)


# What the sections share.


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _contiguous_like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _perturbed_fake(x: Tensor, per_draw: Tensor, bank: Tensor, antithetic: bool) -> Tensor:
    return per_draw.new_empty((bank.shape[0] * (2 if antithetic else 1), *x.shape))


def _one_per_sample(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0],), dtype=_compute_dtype(x.dtype))


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision that the ops compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _columns(per_sample: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], with as many dimensions as x."""
    return per_sample.reshape(-1, *[1] * (x.dim() - 1))


def _summed(per_draw: Tensor, direct: Tensor | None) -> Tensor:
    total = _sum_draws(per_draw, _compute_dtype(per_draw.dtype))
    return total if direct is None else total + direct


def _sum_draws(per_draw: Tensor, dtype: torch.dtype) -> Tensor:
    total: Tensor = torch.ops.pursamere.sum_draws(per_draw, dtype)
    return total


def _to_terms(v_gradient: Tensor, per_draw: Tensor, direct: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the terms of g = direct + sum_k per_draw_k."""
    return v_gradient.to(per_draw.dtype).expand_as(per_draw), None if direct is None else v_gradient.to(direct.dtype)


def _sample_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every sample of [B, *] tensors, [B, 1, ...]."""
    if a.dim() == 1:
        return a * b
    return (a * b).sum(dim=tuple(range(1, a.dim())), keepdim=True)


def _unit(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Every sample divided by its norm, and 1 / norm, [B, 1, ...]; both zero where the sample is zero."""
    square = _sample_dot(tensor, tensor)
    inverse = square.masked_fill(square == 0, torch.inf).rsqrt()
    return tensor * inverse, inverse


def _unit_vjp(unit: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
    """Return v (I - u u^T) / norm, the vector-Jacobian product of g -> g / ||g||."""
    return (v - unit * _sample_dot(unit, v)) * inverse
