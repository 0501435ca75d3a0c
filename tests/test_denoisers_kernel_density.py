import copy
import pickle
import subprocess
import sys

import pytest
import torch

from pursamere.denoisers import GaussianMixture, KernelDensity
from pursamere.denoisers import _posterior as posterior

SHAPE = (2, 3, 5)


def naive(y, images, bandwidth, sigma):
    """The posterior mean by its definition, with all squared distances, in float64."""
    y, images = y.double(), images.double()
    variance = sigma**2 + bandwidth**2
    squared = (y[:, None] - images[None]).square().flatten(2).sum(2)
    mean = torch.einsum("nm,mchw->nchw", torch.softmax(-squared / (2 * variance), 1), images)
    return (sigma**2 * mean + bandwidth**2 * y) / variance


def problem(queries=11, count=53, dtype=torch.float64, seed=0, noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    y = images[:queries] + noise * torch.randn(queries, *SHAPE, generator=generator, dtype=torch.float64)
    return images.to(dtype), y.to(dtype)


def derivatives(denoiser, y, sigma):
    """D, a vector-Jacobian product, and the gradient of a function of both (which needs all second derivatives)."""
    y = y.clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    denoised = denoiser(y, sigma)
    residual = denoised - v
    (product,) = torch.autograd.grad(denoised, y, residual, create_graph=True)
    (second,) = torch.autograd.grad((product * v).sum() + product.square().sum(), y)
    return denoised.detach(), product.detach(), second


def relative_error(actual, expected):
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=["kept", "recomputed"])
def _weights(request, monkeypatch):
    """Run with the weights kept for the derivatives, where they fit in one block, and with none ever kept."""
    if request.param == "recomputed":
        monkeypatch.setattr(posterior, "KEPT_ELEMENTS", 0)


@pytest.mark.parametrize(
    ("block_size", "tile_elements"), [(1000, 2**19), (1000, 200), (53, 1), (50, 100), (7, 2**19), (7, 20), (1, 1)]
)
@pytest.mark.parametrize(("bandwidth", "sigma"), [(0.0, 0.3), (0.1, 0.2), (0.3, 0.05)])
@pytest.mark.usefixtures("_weights")
def test_value_and_derivatives_match_the_full_softmax(block_size, tile_elements, bandwidth, sigma, monkeypatch):
    monkeypatch.setattr(posterior, "TILE_ELEMENTS", tile_elements)
    images, y = problem()
    actual = derivatives(KernelDensity(images, bandwidth, block_size=block_size), y, sigma)
    expected = derivatives(lambda y, sigma: naive(y, images, bandwidth, sigma), y, sigma)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-11


@pytest.mark.parametrize("block_size", [20, 1000])
def test_float32_is_close_to_float64(block_size):
    images, y = problem(dtype=torch.float32)
    actual = derivatives(KernelDensity(images, 0.05, block_size=block_size), y, 0.2)
    expected = derivatives(lambda y, sigma: naive(y, images, 0.05, sigma), y.double(), 0.2)
    for a, e, tolerance in zip(actual, expected, [2e-6, 2e-5, 1e-4], strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, e) < tolerance


@pytest.mark.parametrize("block_size", [2, 100])
@pytest.mark.parametrize("bandwidth", [0.0, 0.2])
def test_gradcheck(block_size, bandwidth):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(5, 1, 2, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(3, 1, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    denoiser = KernelDensity(images, bandwidth, block_size=block_size)
    assert torch.autograd.gradcheck(lambda y: denoiser(y, 0.3), (y,))
    assert torch.autograd.gradgradcheck(lambda y: denoiser(y, 0.3), (y,))


def test_third_derivative_is_refused():
    images, y = problem()
    y.requires_grad_()
    (first,) = torch.autograd.grad(KernelDensity(images, 0.1)(y, 0.2).square().sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated at most twice"):
        torch.autograd.grad(second.sum(), y)


def test_equals_the_gaussian_mixture_with_equal_weights():
    images, y = problem()
    actual = KernelDensity(images, 0.15, block_size=8)(y, 0.25)
    torch.testing.assert_close(actual, GaussianMixture(images, 0.15)(y, 0.25), rtol=0, atol=1e-13)


@pytest.mark.parametrize("block_size", [10, 1000])
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("sigma", [1e-3, 0.05])
def test_far_queries_get_the_nearest_image(distance, sigma, block_size):
    images, _ = problem(count=200, dtype=torch.float32)
    direction = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = distance * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    squared = (y[:, None] - images.double()[None]).square().flatten(2).sum(2)
    two_nearest = squared.topk(2, dim=1, largest=False).values
    clear = two_nearest[:, 1] - two_nearest[:, 0] > 1e-2 * distance
    assert clear.sum() > 20
    denoised, product, second = derivatives(KernelDensity(images, 0.0, block_size=block_size), y.float(), sigma)
    torch.testing.assert_close(denoised[clear], images[squared.argmin(1)][clear], rtol=0, atol=1e-5)
    assert all(bool(torch.isfinite(each).all()) for each in (denoised, product, second))
    assert product[clear].abs().max() < 1e-2 * distance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-300, 1e-12, 1e-4])
def test_tiny_sigma_gives_the_nearest_image_and_no_derivative(sigma, dtype):
    images, y = problem(dtype=dtype)
    denoised, product, second = derivatives(KernelDensity(images, 0.0), y, sigma)
    torch.testing.assert_close(denoised, images[:11], rtol=0, atol=1e-6)
    assert product.abs().max() < 1e-2
    assert second.abs().max() < 1e-2


def test_huge_sigma_gives_the_mean_image():
    images, y = problem()
    denoised = KernelDensity(images, 0.0)(y, 1e200)
    torch.testing.assert_close(denoised, images.mean(0).expand_as(y), rtol=0, atol=1e-14)


def test_one_image_is_always_returned():
    images, y = problem()
    torch.testing.assert_close(KernelDensity(images[:1], 0.0)(y, 0.5), images[:1].expand_as(y), rtol=0, atol=1e-15)


@pytest.mark.parametrize("block_size", [10, 1000])
def test_bits_do_not_depend_on_the_grad_mode(block_size):
    images, y = problem(dtype=torch.float32)
    denoiser = KernelDensity(images, 0.1, block_size=block_size)
    with torch.inference_mode():
        inference = denoiser(y, 0.2)
    with torch.no_grad():
        without = denoiser(y, 0.2)
    assert torch.equal(inference, without)
    assert torch.equal(without, derivatives(denoiser, y, 0.2)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    images, y = problem(dtype=torch.float32)
    y = y.to(dtype)
    denoiser = KernelDensity(images, 0.1)
    assert torch.equal(denoiser(y, 0.2), denoiser(y.float(), 0.2).to(dtype))


@pytest.mark.parametrize("block_size", [10, 1000])
def test_autocast_changes_nothing(block_size):
    images, y = problem(dtype=torch.float32)
    denoiser = KernelDensity(images, 0.1, block_size=block_size)
    expected = derivatives(denoiser, y, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = derivatives(denoiser, y, 0.2)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_images_of_another_dtype_are_converted():
    images, y = problem()
    expected = naive(y, images.float(), 0.1, 0.2)
    torch.testing.assert_close(KernelDensity(images.float(), 0.1)(y, 0.2), expected, rtol=0, atol=1e-13)
    denoiser = KernelDensity(images, 0.1)
    actual = denoiser(y.float(), 0.2)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser(y, 0.2), naive(y, images, 0.1, 0.2), rtol=0, atol=1e-13)


def test_the_working_copy_follows_the_images():
    images, y = problem()
    denoiser = KernelDensity(images.clone(), 0.1)
    denoiser(y, 0.2)
    denoiser.images.mul_(0.5)
    torch.testing.assert_close(denoiser(y, 0.2), naive(y, images * 0.5, 0.1, 0.2), rtol=0, atol=1e-13)
    denoiser = KernelDensity(images, 0.1)
    denoiser(y, 0.2)
    denoiser.images = images[:3]
    torch.testing.assert_close(denoiser(y, 0.2), naive(y, images[:3], 0.1, 0.2), rtol=0, atol=1e-13)


def test_module_can_be_copied_and_pickled_and_keeps_the_images_out_of_checkpoints():
    images, y = problem()
    denoiser = KernelDensity(images, 0.1)
    expected = denoiser(y, 0.2)
    assert torch.equal(copy.deepcopy(denoiser)(y, 0.2), expected)
    pickled = pickle.dumps(denoiser)
    assert torch.equal(pickle.loads(pickled)(y, 0.2), expected)
    assert len(pickled) < 2 * images.numel() * 8
    assert denoiser.state_dict() == {}
    assert repr(denoiser) == "KernelDensity(images=(53, 2, 3, 5), bandwidth=0.1, block_size=2048)"


def test_empty_batch_and_other_memory_formats():
    images, y = problem()
    denoiser = KernelDensity(images, 0.1)
    empty = torch.zeros(0, *SHAPE, dtype=torch.float64, requires_grad=True)
    result = denoiser(empty, 0.2)
    assert result.shape == empty.shape
    assert torch.autograd.grad(result.sum(), empty)[0].shape == empty.shape
    channels_last = y.contiguous(memory_format=torch.channels_last)
    assert torch.equal(denoiser(channels_last, 0.2), denoiser(y, 0.2))
    strided = torch.empty(*y.shape[:3], 2 * y.shape[3], dtype=y.dtype)[..., ::2].copy_(y)
    assert torch.equal(
        KernelDensity(images.transpose(2, 3).contiguous().transpose(2, 3), 0.1)(strided, 0.2), denoiser(y, 0.2)
    )


def test_global_state_is_left_alone():
    images, y = problem()
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    derivatives(KernelDensity(images, 0.1, block_size=10), y, 0.2)
    after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


MEMORY_SCRIPT = """
import resource
import sys
import torch
from pursamere.denoisers import KernelDensity

torch.set_num_threads(1)  # each thread has its own buffers

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def run(denoiser, queries, shape, order):
    y = torch.rand(queries, *shape, requires_grad=order > 0)
    denoised = denoiser(y, 0.3)
    if order > 0:
        (first,) = torch.autograd.grad(denoised, y, denoised, create_graph=True)
        torch.autograd.grad(first, y, first)

for queries, images, shape, order in [
    (512, 60_000, (1, 8, 8), 2),
    (512, 60_000, (1, 28, 28), 0),
    (15_360, 2_000, (1, 4, 4), 2),
]:
    denoiser = KernelDensity(torch.rand(images, *shape), 0.1)
    run(denoiser, 64, shape, order)  # the working copy of the images and the buffers of the matrix products
    before = peak()
    run(denoiser, queries, shape, order)
    print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_queries_times_images():
    pytest.importorskip("resource")
    result = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True)
    growth = [int(line) for line in result.stdout.split()]
    one_matrix = 512 * 60_000 * 4
    assert len(growth) == 3
    assert max(growth) < one_matrix / 3, f"grew by {growth} bytes; one matrix [queries, images] has {one_matrix}"


@pytest.mark.parametrize(
    ("images", "bandwidth", "error", "message"),
    [
        ([[0.0]], 0.1, TypeError, "images must be a torch.Tensor, got list"),
        (torch.zeros(3, 4, 4), 0.1, ValueError, r"images must have 4 dimensions, got shape \(3, 4, 4\)"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), 0.1, TypeError, "images must have a floating dtype.*torch.uint8"),
        (torch.zeros(0, 1, 4, 4), 0.1, ValueError, r"images must hold at least one image.*\(0, 1, 4, 4\)"),
        (torch.zeros(3, 1, 0, 4), 0.1, ValueError, r"images must hold at least one image.*\(3, 1, 0, 4\)"),
        (torch.full((3, 1, 4, 4), torch.nan), 0.1, ValueError, "images must be finite, got NaN or infinity"),
        (torch.full((3, 1, 4, 4), -torch.inf), 0.1, ValueError, "images must be finite, got NaN or infinity"),
        (torch.zeros(3, 1, 4, 4), -0.1, ValueError, "bandwidth must be at least 0 and finite, got -0.1"),
        (torch.zeros(3, 1, 4, 4), float("nan"), ValueError, "bandwidth must be at least 0 and finite, got nan"),
        (torch.zeros(3, 1, 4, 4), "wide", TypeError, "bandwidth must be a real number, got str"),
    ],
)
def test_bad_construction(images, bandwidth, error, message):
    with pytest.raises(error, match=message):
        KernelDensity(images, bandwidth)


def test_bad_block_size():
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        KernelDensity(torch.zeros(3, 1, 4, 4), 0.1, block_size=0)
    with pytest.raises(TypeError, match="block_size must be an int, got float"):
        KernelDensity(torch.zeros(3, 1, 4, 4), 0.1, block_size=2.0)


@pytest.mark.parametrize(
    ("y", "sigma", "error", "message"),
    [
        (0.5, 0.1, TypeError, "y must be a torch.Tensor, got float"),
        (torch.zeros(1, 4, 4), 0.1, ValueError, r"y must have 4 dimensions, got shape \(1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), 0.1, TypeError, "y must have a floating dtype.*torch.int64"),
        (torch.zeros(2, 1, 4, 5), 0.1, ValueError, r"y must.*shape of images, \(1, 4, 4\), got \(1, 4, 5\)"),
        (
            torch.zeros(2, 1, 4, 4, device="meta"),
            0.1,
            ValueError,
            r"y must be on the device of images, cpu, got meta; move the denoiser with denoiser.to\('meta'\)",
        ),
        (torch.zeros(2, 1, 4, 4), 0.0, ValueError, "sigma must be positive and finite, got 0.0"),
        (torch.zeros(2, 1, 4, 4), -1.0, ValueError, "sigma must be positive and finite, got -1.0"),
        (torch.zeros(2, 1, 4, 4), float("inf"), ValueError, "sigma must be positive and finite, got inf"),
        (torch.zeros(2, 1, 4, 4), None, TypeError, "sigma must be a real number, got NoneType"),
    ],
)
@pytest.mark.parametrize("kind", [KernelDensity, GaussianMixture])
def test_bad_query(kind, y, sigma, error, message):
    message = message.replace("of images", "of means") if kind is GaussianMixture else message
    with pytest.raises(error, match=message):
        kind(torch.zeros(3, 1, 4, 4), 0.1)(y, sigma)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_pixels_show_in_their_own_row_only(bad):
    denoiser = KernelDensity(torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 0.1)
    y = torch.full((2, 1, 4, 4), 0.5)
    good = denoiser(y, 0.1)
    y[1, 0, 2, 2] = bad
    result = denoiser(y, 0.1)
    assert bool(result[1].isnan().any())
    torch.testing.assert_close(result[0], good[0])
