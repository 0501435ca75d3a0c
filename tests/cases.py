"""The arguments on which every op is tried: shared by the reference, gradient and registration tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

OPS = torch.ops.pursamere
# One of more elements than a tile of the CPU ops (4096), some of odd sizes.
SHAPES = [(3, 1, 8, 8), (1, 3, 5, 7), (2, 1025), (5, 3), (4,), (2, 3, 41, 37)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# The dtype of the images and that of the network.
DTYPE_PAIRS = [(d, d) for d in DTYPES] + [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]


def tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float64, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform values that depend on nothing but the arguments."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * values).to(dtype)


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """An op's results, also of one that has a single one."""
    return result if isinstance(result, tuple) else (result,)


def bits_of(values: Tensor) -> Tensor:
    """The values' bits as integers: tells -0 from +0, unlike ``==``."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def assert_same_bits(got: Any, want: Any, what: object) -> None:
    """Shapes, dtypes, strides and bits; a NaN is a NaN, whatever its sign and payload."""
    for number, (a, b) in enumerate(zip(as_tuple(got), as_tuple(want), strict=True)):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), (what, number)
        a, b = a.cpu(), b.cpu()
        different = (bits_of(a) != bits_of(b)) & ~(a.isnan() & b.isnan())
        first = different.nonzero()[0].tolist() if different.any() else None
        assert first is None, f"{what}, result {number}: {int(different.sum())} values differ, the first at {first}"


def special_calls(d: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Zeros of both signs, NaN, subnormal numbers, norms and steps that overflow, and an infinite radius."""
    x, terms = tensor(0, 7, d, dtype=torch.float32), tensor(1, 2, 7, d, dtype=torch.float32, low=-1)
    terms[:, 1] = 0
    terms[1, 2, 3] = torch.nan
    terms[:, 3] = 1e25
    terms[:, 4] = x[4] = -0.0
    terms[:, 5] *= 1e-39
    x[5] *= 1e-40
    direct = torch.zeros_like(x).copysign(torch.tensor(-1.0))
    for step in ("gradient", "unit", "sign"):
        for ball in ("linf", "l2"):
            for radius in (0.0, 0.2, torch.inf):
                yield "accumulate_descend", (x, x, terms, direct, step, 0.1, ball, radius)
        for huge in (1e39, 1e30):  # infinite in float32; finite, with an overflowing step
            yield "accumulate_descend", (x, x, 1e-20 * terms, None, step, huge, "l2", 0.2)
    yield "accumulate_ascend", (x, terms, direct, 0.1)
    yield "residual_backward", (terms, x, -1.0, 1.0, 1e30, 1e-30)
    bank = terms[:1, 0]
    for antithetic in (False, True):
        yield "perturb", (x, 0.1, 1 + antithetic, 0, antithetic, None, 1.0, 0.0, bank)
        yield "accumulate_ascend_perturb", (x, terms, direct, 0.1, bank, 0.1, antithetic)
        yield "accumulate_descend_perturb", (x, x, terms, direct, "unit", 0.1, "l2", 0.2, bank, 0.1, antithetic)
    for kind in ("denoised", "score", "noise"):
        yield "residual", (x, terms, kind, 0.1, 0, True)
        yield "residual", (x, terms, kind, 0.1, 0, True, 1e30, 0.5, -0.5)


def every_half(dtype: torch.dtype) -> Tensor:
    """All values of a half type but one, in two rows, of which one is not aligned: [2, 65535]."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return torch.stack((halves[1:], halves[:-1]))


def floats_around_halves(dtype: torch.dtype) -> Tensor:
    """Every value of a half type and every midpoint of two, each with both its neighbors in float32, [2, n].

    Also what overflows, infinity and NaN. Two rows, of which one is not aligned.
    """
    values = torch.arange(2**15, dtype=torch.int16).view(dtype).double()
    values = values[values.isfinite()]
    values = torch.cat((values, 2 * values[-1:] - values[-2:-1]))  # where infinity would be
    points = torch.cat((values, (values[1:] + values[:-1]) / 2)).float()
    infinity = torch.tensor(torch.inf)
    points = torch.cat((points, points.nextafter(infinity), points.nextafter(-infinity)))
    points = torch.cat((points, -points, torch.tensor([torch.nan, -torch.nan])))
    points = torch.cat((points, points[: 1 - points.numel() % 2]))  # an odd number
    return torch.stack((points, points.flip(0)))


def conversion_calls(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Ops that convert from and to a half type, and change the values by exact operations or not at all."""
    yield "perturb", (floats_around_halves(dtype), 0.0, 1, 0, False, dtype)
    halves = every_half(dtype)
    yield "residual", (torch.zeros(halves.shape), halves[None], "denoised", 1.0, 0, False)
    yield "accumulate_ascend", (halves, torch.zeros_like(halves)[None], None, 0.0)


def expanded_calls(x: Tensor, draws: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every op on samples and draws that take no memory beside that of x."""
    terms = x.expand(draws, *x.shape)
    yield "noise", (x, draws, 0, False)
    yield "perturb", (x, 0.1, draws, 0, False)
    if draws * math.prod(x.shape[1:]) < 2**63:  # or there is no such tensor
        bank = torch.zeros(1).expand(draws, *x.shape[1:])
        yield "perturb", (x, 0.1, draws, 0, False, None, 1.0, 0.0, bank)
        yield "accumulate_ascend_perturb", (x, terms, None, 0.1, bank, 0.1, False)
        yield "accumulate_descend_perturb", (x, x, terms, None, "unit", 0.1, "l2", 0.1, bank, 0.1, False)
    for kind in ("denoised", "score"):
        yield "residual", (x, terms, kind, 0.1, 0, False)
    yield "sum_draws", (terms, x.dtype)
    yield "residual_backward", (terms, x, -1.0, 1.0, 1.0, 1.0)
    yield "accumulate_ascend", (x, terms, None, 0.1)
    for step, ball in (("unit", "l2"), ("sign", "linf")):
        yield "accumulate_descend", (x, x, terms, x, step, 0.1, ball, 0.1)


def draw_calls(draws: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every op with numbers of draws that do not fill a round of the kernels."""
    x, terms = tensor(1, 3, 77, dtype=torch.float32), tensor(2, draws, 3, 77, dtype=torch.float32, low=-1)
    for antithetic in (False, True)[: 1 + (draws % 2 == 0)]:
        yield "noise", (x, draws, 3, antithetic)
        yield "perturb", (x, 0.4, draws, 3, antithetic)
        for kind in ("denoised", "score", "noise"):
            yield "residual", (x, terms, kind, 0.4, 3, antithetic)
            yield "residual", (x, terms, kind, 0.4, 3, antithetic, 1.0, 1.0, 0.0, 1.0, True, True, False)
        bank = tensor(3, draws // (1 + antithetic), 77, dtype=torch.float32, low=-2, high=2)
        yield "perturb", (x, 0.4, draws, 0, antithetic, None, 1.0, 0.0, bank)
        yield "accumulate_ascend_perturb", (x, terms[:1], None, 0.1, bank, 0.4, antithetic)
        yield "accumulate_descend_perturb", (x, x, terms[:1], x, "sign", 0.1, "linf", 0.05, bank, 0.4, antithetic)
    yield "sum_draws", (terms, torch.float32)
    yield "residual_backward", (terms, x, -0.7, 1.0, 0.4, 1.1)
    yield "accumulate_ascend", (x, terms, None, 0.1)
    yield "accumulate_descend", (x, x, terms, x, "unit", 0.1, "l2", 0.05)


def op_calls(
    shape: tuple[int, ...], image: torch.dtype, network: torch.dtype, draws: int = 4
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (op, arguments) for every op and every one of its options."""
    x = tensor(1, *shape, dtype=image)
    start = (x.double() + tensor(2, *shape, low=-0.1, high=0.1)).clamp(0, 1).to(image)
    prediction = tensor(3, draws, *shape, dtype=network)
    per_draw = tensor(4, draws, *shape, dtype=network, low=-1)
    direct = tensor(5, *shape, dtype=image, low=-1)
    for antithetic in (False, True):
        yield "noise", (x[0] if x.dim() > 1 and x.shape[0] else x, draws, 7, antithetic)
        yield "perturb", (x, 0.3, draws, 2**40 + 5, antithetic, network)
    yield "perturb", (x, 0.3, draws, 3, True, network, 1.7, -0.8)
    for kind in ("denoised", "score", "noise"):
        yield "residual", (x, prediction, kind, 0.3, 11, True)
        yield "residual", (x, prediction, kind, 0.3, 11, False)
        yield "residual", (x, prediction, kind, 0.3, 11, True, 1.3, 0.6, 0.2, 1.7)  # an affine map of the prediction
        for wanted in itertools.product((False, True), repeat=3):
            if any(wanted) and not all(wanted):
                yield "residual", (x, prediction, kind, 0.3, 11, True, 1.0, 1.0, 0.0, 1.0, *wanted)
    yield "sum_draws", (per_draw, image)
    yield "residual_backward", (per_draw, direct, -0.7, 1.0, 0.4, 1.1)
    for optional in (direct, None):
        yield "accumulate_ascend", (x, per_draw, optional, 0.25)
        for step in ("gradient", "unit", "sign"):
            for ball in ("linf", "l2"):
                yield "accumulate_descend", (x, start, per_draw, optional, step, 0.07, ball, 0.12)
    bank = tensor(6, draws, *shape[1:], dtype=torch.float32, low=-2, high=2)
    independent, antithetic = (bank, 0.3, False), (bank[: draws // 2], 0.3, True, 1.7, -0.8)
    for banked in (independent, antithetic):
        yield "perturb", (x, 0.3, draws, 0, banked[2], network, 1.7, -0.8, banked[0])
        yield "accumulate_ascend_perturb", (x, per_draw, direct, 0.25, *banked)
    for step, ball, banked in (
        ("gradient", "linf", independent),
        ("unit", "linf", antithetic),
        ("gradient", "l2", antithetic),
        ("sign", "l2", independent),
        ("unit", "l2", antithetic),
    ):
        yield "accumulate_descend_perturb", (x, start, per_draw, direct, step, 0.07, ball, 0.12, *banked)


def without_derivative(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call's op cannot be differentiated with respect to all of its tensors: to a bank of noise, never."""
    if name == "perturb":
        return len(arguments) > 8
    return name in ("noise", "accumulate_ascend_perturb", "accumulate_descend_perturb")
