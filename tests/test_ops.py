"""Every op against the reference in plain PyTorch, and against itself in other batches, layouts and thread counts."""

import math

import numpy as np
import pytest
import reference
import torch
from cases import DTYPE_PAIRS, OPS, SHAPES, as_tuple, bits_of, conversion_calls, op_calls, tensor

from pursamere import GaussianNoise, functional

# Rounding of the stored type, and of float32 arithmetic in sums of some thousand terms.
TOLERANCE = {torch.float64: 2e-7, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# The noise is a float32 number even in float64.


def same_bits(got, want):
    for a, b in zip(as_tuple(got), as_tuple(want), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b), f"first difference at {(a != b).nonzero()[0].tolist()}"


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape, image, network):
    for name, arguments in op_calls(shape, image, network):
        got = as_tuple(getattr(OPS, name)(*arguments))
        want = as_tuple(getattr(reference, name)(*arguments))
        for a, b in zip(got, want, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            if a.numel() == 0:
                continue  # not wanted
            tolerance = TOLERANCE[a.dtype] if a.dtype in (torch.float16, torch.bfloat16) else TOLERANCE[image]
            scale = max(1.0, float(b.double().abs().max()))
            assert float((a.double() - b.double()).abs().max()) <= tolerance * scale, (name, arguments[2:])


@pytest.mark.parametrize("image", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_float64_is_exact_to_float64_rounding(image):
    """With noise taken out, float64 ops agree with the reference to 1e-14: nothing in them is rounded to float32."""
    x, prediction = tensor(1, 2, 3, 11, dtype=image), tensor(2, 4, 2, 3, 11, dtype=image)
    got = OPS.residual(x, prediction, "denoised", 0.3, 0, True)
    want = reference.residual(x, prediction, "denoised", 0.3, 0, True)
    limit = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 3e-1}[image]
    assert max(float((a - b).double().abs().max()) for a, b in zip(got, want, strict=True)) <= limit


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,)], ids=str)
def test_empty_batches_and_samples(shape):
    for name, arguments in op_calls(shape, torch.float32, torch.float32):
        for a, b in zip(
            as_tuple(getattr(OPS, name)(*arguments)), as_tuple(getattr(reference, name)(*arguments)), strict=True
        ):
            assert a.shape == b.shape
            assert bool((a == 0).all())


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_other_memory_layouts_give_the_same_bits(layout):
    def laid_out(value):
        if not isinstance(value, torch.Tensor):
            return value
        if layout == "channels_last":
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            return value.to(memory_format=formats[value.dim()]) if value.dim() in formats else value
        if layout == "strided":
            return value.repeat_interleave(2, dim=-1)[..., ::2]
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)

    for name, arguments in op_calls((2, 3, 6, 5), torch.float32, torch.float32):
        others = tuple(laid_out(value) for value in arguments)
        assert name == "noise" or any(isinstance(v, torch.Tensor) and not v.is_contiguous() for v in others)
        results = as_tuple(getattr(OPS, name)(*others))
        assert all(result.is_contiguous() for result in results)
        same_bits(results, as_tuple(getattr(OPS, name)(*arguments)))


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(image, network):
    """D2 for the ops, with rows picked, reordered and repeated."""
    rows = torch.tensor([3, 0, 3, 4])
    for name, arguments in op_calls((5, 3, 20, 20), image, network):
        if name == "noise":
            continue
        whole = as_tuple(getattr(OPS, name)(*arguments))
        picked = tuple(
            (value[:, rows] if value.dim() == 5 else value[rows] if len(value) == 5 else value)
            if isinstance(value, torch.Tensor)
            else value
            for value in arguments
        )
        same_bits(
            as_tuple(getattr(OPS, name)(*picked)),
            tuple(
                result[:, rows] if result.dim() == 5 else result[rows] if result.numel() else result for result in whole
            ),
        )


@pytest.mark.parametrize("shape", [(1, 150_528), (7, 70_001), (300, 40)], ids=str)
def test_the_number_of_threads_does_not_change_the_bits(shape):
    before = torch.get_num_threads()
    try:
        for name, arguments in op_calls(shape, torch.float32, torch.float32):
            torch.set_num_threads(1)
            one = getattr(OPS, name)(*arguments)
            torch.set_num_threads(5)
            same_bits(getattr(OPS, name)(*arguments), one)
    finally:
        torch.set_num_threads(before)


def documented_sum(values):
    """csrc/reduction.h in numpy."""
    while values.size > 1:
        chunks = -(-values.size // 1024)
        padded = np.zeros(chunks * 1024, dtype=values.dtype)
        padded[: values.size] = values
        rows = padded.reshape(chunks, 8, 128)
        column = rows[:, 0].copy()
        for r in range(1, 8):
            column += rows[:, r]
        four = column.reshape(chunks, 32, 4)
        lane = (four[..., 0] + four[..., 1]) + (four[..., 2] + four[..., 3])
        for half in (16, 8, 4, 2, 1):
            lane = lane[:, :half] + lane[:, half : 2 * half]
        values = lane[:, 0]
    return values[0]


@pytest.mark.parametrize("d", [1, 3, 64, 1023, 1024, 1025, 3072, 150_528, 1024 * 1024 + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_follow_the_documented_order_to_the_bit(d, dtype):
    gradient = tensor(d, 1, 1, d, dtype=dtype, low=-1)
    _, norm = OPS.accumulate_ascend(torch.zeros(1, d, dtype=dtype), gradient, None, 0.0)
    assert norm.numpy()[0] == np.sqrt(documented_sum(gradient.numpy().ravel() ** 2))
    draws = tensor(d + 1, 2, 1, d, dtype=dtype)
    ere = OPS.residual(torch.zeros(1, d, dtype=dtype), draws, "denoised", 1.0, 0, True)[2]
    if dtype == torch.float32:  # r^2 is added by fused multiply-add, which one wider rounding reproduces
        first, second = draws.numpy().reshape(2, -1).astype(np.longdouble)
        squares = ((first**2).astype(np.float32).astype(np.longdouble) + second**2).astype(np.float32)
        assert ere.numpy()[0] == documented_sum(squares) * np.float32(0.5)


def test_nan_is_never_hidden():
    x = torch.full((2, 5), 0.5)
    per_draw = torch.zeros(4, 2, 5)
    per_draw[1, 0, 3] = math.nan
    for step in ("gradient", "unit", "sign"):
        for ball in ("linf", "l2"):
            result = OPS.accumulate_descend(x, x, per_draw, None, step, 0.1, ball, 0.2)
            assert bool(result[0, 3].isnan()), (step, ball)
            assert torch.equal(result[1], x[1])
    assert bool(OPS.accumulate_ascend(x, per_draw, None, 0.1)[1][0].isnan())


def test_a_zero_gradient_moves_nothing():
    x = tensor(0, 3, 4, dtype=torch.float32)
    zero = torch.zeros(2, 3, 4)
    point, norm = OPS.accumulate_ascend(x, zero, None, 0.3)
    assert torch.equal(point, x)
    assert torch.equal(norm, torch.zeros(3))
    for step in ("gradient", "unit", "sign"):
        for ball in ("linf", "l2"):
            assert torch.equal(OPS.accumulate_descend(x, x, zero, None, step, 0.1, ball, 0.2), x)


def test_a_norm_that_overflows_shows():
    """It would otherwise make every step zero: an image quietly left as it was."""
    x, per_draw = torch.full((2, 5), 0.5), torch.zeros(2, 2, 5)
    per_draw[:, 0] = 1e25
    point, norm = OPS.accumulate_ascend(x, per_draw, None, 0.1)
    assert math.isinf(norm[0])
    assert bool(point[0].isnan().all())
    assert torch.equal(point[1], x[1])
    moved = OPS.accumulate_descend(x, x, per_draw, None, "unit", 0.1, "linf", 0.2)
    assert bool(moved[0].isnan().all())
    moved = OPS.accumulate_descend(x, x, per_draw, None, "gradient", 0.1, "l2", 0.2)
    assert bool(moved[0].isnan().all())


def test_infinite_radius_leaves_only_the_pixel_range():
    x, per_draw = tensor(0, 3, 40), tensor(1, 2, 3, 40, low=-1)
    for ball in ("linf", "l2"):
        got = OPS.accumulate_descend(x, x, per_draw, None, "gradient", 0.4, ball, math.inf)
        torch.testing.assert_close(got, (x - 0.4 * per_draw.sum(0)).clamp(0, 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_conversions_round_to_nearest_even(dtype):
    """As PyTorch's do: from every value, and from floats around every value and every boundary of rounding."""

    def assert_converted(got, want):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert got.dtype == torch.float32 or torch.all(bits_of(got)[got.isnan()] == 0x7FFF)

    (_, to_half), (_, from_half), (_, both) = conversion_calls(dtype)
    assert_converted(OPS.perturb(*to_half)[0], to_half[0].to(dtype))
    _, drift, _ = OPS.residual(*from_half)
    assert_converted(drift, -2 * from_half[1][0].float())
    assert_converted(OPS.accumulate_ascend(*both)[0], both[0])


def test_out_of_memory_is_pytorchs_own_error(monkeypatch):
    """On CUDA that is a ``torch.OutOfMemoryError``, which ``test_cuda.py`` asserts."""
    noise = GaussianNoise(draws=2**26)
    with pytest.raises(RuntimeError, match="you tried to allocate 17592186044416 bytes") as caught:
        functional.perturb(torch.zeros(1, 2**16), 0.1, noise)
    assert "pursamere could not allocate a tensor of shape [67108864, 1, 65536] with 4 bytes" in str(
        caught.value.__cause__
    )
    with pytest.raises(RuntimeError, match="you tried to allocate 17592186044416 bytes"):
        functional.perturb(torch.zeros(1).expand(1, 2**42), 0.1, GaussianNoise(draws=2))

    def no_memory(*size, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        functional.perturb(torch.zeros(1, 2**16), 0.1, noise)


def test_checks_in_compiled_code_are_the_backstop():
    x = torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="draws must be even with antithetic noise, got 3"):
        OPS.perturb(x, 0.1, 3, 0, True)
    with pytest.raises(RuntimeError, match=r"prediction must have shape \[draws, \*x.shape\]"):
        OPS.residual(x, torch.rand(2, 2, 4), "denoised", 0.1, 0, False)
    with pytest.raises(RuntimeError, match="step_rule must be 'gradient', 'unit' or 'sign'"):
        OPS.accumulate_descend(x, x, torch.rand(2, 2, 3), None, "up", 0.1, "linf", 0.1)
    with pytest.raises(RuntimeError, match="direct must have the shape of x"):
        OPS.accumulate_ascend(x, torch.rand(2, 2, 3), torch.rand(2, 4), 0.1)
    with pytest.raises(RuntimeError, match="only float16, bfloat16, float32 and float64"):
        OPS.perturb(torch.ones(2, 3, dtype=torch.int32), 0.1, 2, 0, True)


@pytest.mark.parametrize(
    ("image", "network"),
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_pairs_of_dtypes_that_are_not_supported(image, network):
    with pytest.raises(TypeError, match=f"dtype must be that of x, {image}, or a half type beside float32"):
        functional.perturb(tensor(0, 1, 4, dtype=image), 0.2, GaussianNoise(draws=2), dtype=network)


@pytest.mark.parametrize("kind", ["denoised", "score", "noise"])
@pytest.mark.parametrize("image", [torch.float32, torch.float16], ids=str)
def test_the_derivative_of_the_error_takes_factors_beyond_float16(kind, image):
    """That of a gradient scaler is 65,536 at first."""
    noise = GaussianNoise(draws=2)
    x, prediction = tensor(1, 2, 5, dtype=image), tensor(2, 2, 2, 5, dtype=torch.float16)
    factors = torch.tensor([2.0**16, 1.0])

    def gradients(x, prediction):
        leaves = [x.clone().requires_grad_(), prediction.clone().requires_grad_()]
        terms = functional.residual(*leaves, 0.01, noise, kind=kind, gain=0.5, with_cotangent=False, with_drift=False)
        return torch.autograd.grad(terms.ere, leaves, factors.to(terms.ere.dtype))

    for got, want in zip(gradients(x, prediction), gradients(x.double(), prediction.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=5e-3, atol=1e-2)


def test_second_derivatives_inside_an_l2_ball_are_finite_next_to_its_center():
    start, x = torch.zeros(1, 4), torch.full((1, 4), 1e-15, requires_grad=True)
    for radius in (0.3, 1e39, 1e160):
        options = {"step_rule": "gradient", "step_size": 0.1, "norm": "l2", "radius": radius}
        moved = functional.accumulate_descend(x, start, torch.zeros(1, 1, 4), None, **options)
        (first,) = torch.autograd.grad(moved.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert torch.equal(second, torch.full((1, 4), 2.0))
