"""Every operation again in plain PyTorch, as slowly and plainly as it can be said: the oracle of the tests.

The functions take the arguments of ``torch.ops.pursamere.*``. In float64 they are exact to rounding; the compiled
operations promise bits, these do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32_10(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return [c0, c1, c2, c3]


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the product of two 32-bit numbers, with every intermediate below 2^63."""
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)
    high = (high_half + (low_half >> 16)) >> 16
    low = (low_half + ((high_half & 0xFFFF) << 16)) & _MASK
    return high, low


def noise(like: Tensor, draws: int, seed: int, antithetic: bool) -> Tensor:
    """Box-Muller on the Philox words of (element / 4, draw), computed in float64 and rounded to float32."""
    count = like.numel()
    block = torch.arange((count + 3) // 4, device="cpu")
    rows = []
    for draw in range(draws):
        index = draw // 2 if antithetic else draw
        counter = (block & _MASK, block >> 32, torch.full_like(block, index), torch.zeros_like(block))
        words = philox4x32_10(counter, (seed & _MASK, seed >> 32))
        lanes = []
        for radius_word, angle_word in (words[:2], words[2:]):
            # The uniform number is a float32 by definition: near 1 its logarithm hangs on that rounding.
            uniform = ((radius_word >> 1).float().double() * 2.0**-31 + 2.0**-32).float().double()
            radius = (-2 * uniform.log()).sqrt()
            angle = 2 * math.pi * angle_word.double() * 2.0**-32
            lanes += [radius * angle.cos(), radius * angle.sin()]
        row = torch.stack(lanes, dim=1).flatten()[:count]
        rows.append(-row if antithetic and draw % 2 else row)
    return torch.stack(rows).float().to(like).reshape(draws, *like.shape)


def perturb(
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
    """Every image under every draw of the noise, scale * (x + sigma * xi_k) + shift."""
    if bank is None:
        xi = noise(torch.empty(x.shape[1:], dtype=torch.float64, device="cpu"), draws, seed, antithetic).to(x.device)
    else:
        xi = torch.stack([bank, -bank], dim=1).flatten(0, 1) if antithetic else bank
    return (scale * (_wide(x) + sigma * xi.unsqueeze(1)) + shift).to(dtype or x.dtype)


def residual(
    x: Tensor,
    prediction: Tensor,
    kind: str,
    sigma: float,
    seed: int,
    antithetic: bool,
    scale: float = 1.0,
    gain: float = 1.0,
    shift: float = 0.0,
    input_scale: float = 1.0,
    with_cotangent: bool = True,
    with_drift: bool = True,
    with_ere: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """r_k = x - D(x + sigma * xi_k), its cotangent, (2/K) sum_k r_k, and (1/K) sum_k ||r_k||^2."""
    draws = prediction.shape[0]
    wide, output = _wide(x), scale * _wide(prediction)
    y = perturb(wide, sigma, draws, seed, antithetic)
    denoised = {"denoised": output, "score": y + sigma**2 * output, "noise": y - sigma * output}[kind]
    slope = gain * scale * {"denoised": -1.0, "score": -(sigma**2), "noise": sigma}[kind]
    r = wide - (gain * denoised + shift)
    ere = r.square().flatten(2).sum(dim=2).mean(dim=0) if x.dim() > 1 else r.square().mean(dim=0)
    return (
        (2 / draws * slope * input_scale * r).to(prediction.dtype) if with_cotangent else prediction.new_empty(0),
        (2 / draws * r.sum(dim=0)).to(x.dtype) if with_drift else x.new_empty(0),
        _per_sample(ere, x) if with_ere else x.new_empty(0),
    )


def residual_backward(
    per_draw: Tensor, shared: Tensor, g: float, h: float, s: float, t: float
) -> tuple[Tensor, Tensor]:
    """s * u_k and t * sum_k u_k, with u_k = g * per_draw_k + h * shared."""
    u = g * _wide(per_draw) + h * _wide(shared)
    return (s * u).to(per_draw.dtype), (t * u.sum(dim=0)).to(shared.dtype)


def sum_draws(per_draw: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the draws."""
    return _sum(per_draw, None).to(dtype)


def accumulate_ascend(
    x: Tensor, per_draw: Tensor, direct: Tensor | None, ascent_radius: float
) -> tuple[Tensor, Tensor]:
    """Return x + ascent_radius * g / ||g|| and ||g||, with g = direct + sum_k per_draw_k."""
    gradient = _sum(per_draw, direct)
    norm = _norm(gradient)
    return (_wide(x) + ascent_radius * _unit(gradient, norm)).to(x.dtype), _per_sample(norm.flatten(), x)


def accumulate_descend(
    x: Tensor,
    start: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
) -> Tensor:
    """Clip_[0,1](P(x - step_size * u(g))), with g as above and P the projection onto the ball around ``start``."""
    gradient = _sum(per_draw, direct)
    direction = {"gradient": gradient, "unit": _unit(gradient, _norm(gradient)), "sign": gradient.sign()}[step_rule]
    offset = _wide(x) - step_size * direction - _wide(start)
    if norm == "linf":
        offset = offset.clamp(-radius, radius)
    else:
        offset = offset * (radius / _norm(offset)).clamp(max=1).nan_to_num(nan=1.0)
    return (_wide(start) + offset).clamp(0, 1).to(x.dtype)


def accumulate_ascend_perturb(
    x: Tensor, per_draw: Tensor, direct: Tensor | None, ascent_radius: float, *perturbation: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The ascent and its point perturbed."""
    point, norm = accumulate_ascend(x, per_draw, direct, ascent_radius)
    return point, norm, _perturbed(point, per_draw.dtype, *perturbation)


def accumulate_descend_perturb(x: Tensor, start: Tensor, per_draw: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The descent and its result perturbed."""
    after = accumulate_descend(x, start, per_draw, *rest[:5])
    return after, _perturbed(after, per_draw.dtype, *rest[5:])


def _perturbed(
    x: Tensor, dtype: torch.dtype, bank: Tensor, sigma: float, antithetic: bool, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    return perturb(x, sigma, 0, 0, antithetic, dtype, scale, shift, bank)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double()


def _sum(per_draw: Tensor, direct: Tensor | None) -> Tensor:
    return _wide(per_draw).sum(dim=0) + (0 if direct is None else _wide(direct))


def _norm(tensor: Tensor) -> Tensor:
    """Every sample's L2 norm, [B, 1, ...]."""
    norm = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:])).square().sum(dim=1).sqrt()
    return norm.reshape(-1, *[1] * (tensor.dim() - 1))


def _unit(tensor: Tensor, norm: Tensor) -> Tensor:
    return tensor / torch.where(norm == 0, 1.0, norm)


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
