"""The ops and the purifier on a GPU: the bits of the CPU (D4), and what only a GPU has: streams, graphs, devices."""

import warnings

import pytest
import torch
from cases import (
    DTYPE_PAIRS,
    OPS,
    SHAPES,
    as_tuple,
    assert_same_bits,
    conversion_calls,
    draw_calls,
    op_calls,
    special_calls,
    tensor,
    without_derivative,
)
from float_modes import MODES, float_mode
from nets import conv_classifier, conv_denoiser
from torch.library import opcheck

import pursamere as ps
from pursamere import functional

pytestmark = pytest.mark.usefixtures("cuda")
NOISE = ps.GaussianNoise(seed=5, draws=4)


def on(device, arguments):
    return tuple(value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments)


def assert_bits_of_the_cpu(device, name, arguments):
    op = getattr(OPS, name)
    assert_same_bits(op(*on(device, arguments)), op(*arguments), (name, arguments[2:]))


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_op_and_option_has_the_bits_of_the_cpu(cuda, shape, image, network):
    for name, arguments in op_calls(shape, image, network):
        assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize(
    "shape", [(64, 3072), (2, 150_528), (3, 70_001), (1000, 784), (300, 9_217), (2, 1024 * 1024 + 7)], ids=str
)
def test_shapes_of_real_use_have_the_bits_of_the_cpu(cuda, shape):
    for network in (torch.float32, torch.float16):
        for name, arguments in op_calls(shape, torch.float32, network):
            assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize("d", [5, 10_000])
def test_special_values_come_out_as_on_the_cpu(cuda, d):
    """In samples of one block and of several."""
    for name, arguments in special_calls(d):
        assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_and_every_boundary_of_rounding_converts_as_on_the_cpu(cuda, dtype):
    for name, arguments in conversion_calls(dtype):
        assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_calling_thread_changes_no_bit(cuda, mode):
    """The host computes the kernels' constants."""
    for name, arguments in op_calls((2, 1025), torch.float32, torch.float16):
        moved = on(cuda, arguments)
        with float_mode(mode):
            got = getattr(OPS, name)(*moved)
        assert_same_bits(got, getattr(OPS, name)(*arguments), (name, arguments[2:]))


@pytest.mark.parametrize("draws", [1, 2, 3, 6, 9])
def test_numbers_of_draws_that_do_not_fill_a_round(cuda, draws):
    for name, arguments in draw_calls(draws):
        assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize("draws", [5, 7, 10])
def test_draws_spread_over_blocks_that_they_do_not_fill(cuda, draws):
    x = tensor(1, 600, 784, dtype=torch.float32)
    assert_bits_of_the_cpu(cuda, "perturb", (x, 0.4, draws, 3, draws % 2 == 0))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,)], ids=str)
def test_empty_batches_and_samples(cuda, shape):
    for name, arguments in op_calls(shape, torch.float32, torch.float32):
        assert_bits_of_the_cpu(cuda, name, arguments)


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
def test_tensors_that_do_not_start_at_16_bytes_or_are_not_contiguous(cuda, image, network):
    def shifted(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.new_empty(value.numel() + 1, device=cuda)[1:].view(value.shape).copy_(value)

    def strided(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(cuda).repeat_interleave(2, dim=-1)[..., ::2]

    for name, arguments in op_calls((2, 3, 8, 8), image, network):
        want = getattr(OPS, name)(*arguments)
        for changed in (shifted, strided):
            assert_same_bits(getattr(OPS, name)(*map(changed, arguments)), want, (name, changed.__name__))


def test_the_noise_bank_is_that_of_the_cpu(cuda):
    for draws, antithetic in ((1, False), (64, True)):
        noise = ps.GaussianNoise(seed=2**62 + 3, draws=draws, antithetic=antithetic)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            assert_same_bits(noise.sample((3, 33, 31), cuda, dtype), noise.sample((3, 33, 31), dtype=dtype), dtype)


def test_more_than_2_to_the_31_elements(cuda):
    """64-bit indices, in half precision: 3.2 * 10^9 elements in 3 draws of 2 samples."""
    d = 23170 * 23170
    needed = 3 * 2 * d * 2 * 3
    if torch.cuda.mem_get_info()[0] < 2 * needed:
        pytest.skip(f"needs {2 * needed / 2**30:.0f} GiB of GPU memory")
    noise = ps.GaussianNoise(draws=3, antithetic=False)
    x = torch.full((2, d), 0.5, device=cuda, dtype=torch.float16)
    y = functional.perturb(x, 0.25, noise)
    assert y.numel() > 2**31
    # The last elements of the last draw, against the same noise by its counter.
    tail = torch.ops.pursamere.noise(torch.empty(d, dtype=torch.float16, device=cuda), 3, 0, False)[2, -1000:]
    assert float((y[2, 1, -1000:].float() - (0.5 + 0.25 * tail.float())).abs().max()) < 2e-3
    cotangent, drift, ere = functional.residual(x, y, 0.25, noise)
    r = x[1, -1000:].float() - y[2, 1, -1000:].float()
    assert torch.equal(cotangent[2, 1, -1000:], (r * (-2 / 3)).half())
    assert abs(float(ere[0]) / d / 0.25**2 - 1) < 1e-2
    assert torch.equal(ere[0], ere[1])
    assert bool(drift.isfinite().all())
    del cotangent, drift
    point, norm = functional.accumulate_ascend(x, y, None, 1e4)
    g = y[:, 1, -1000:].float().sum(0)  # 1.5 + 0.25 times the sum of three normals
    assert float(norm[1]) == pytest.approx((d * (1.5**2 + 3 * 0.25**2)) ** 0.5, rel=1e-3)
    assert float((point[1, -1000:].float() - (0.5 + g * (1e4 / norm[1]))).abs().max()) < 2e-3


def test_a_sample_has_the_same_bits_in_any_batch(cuda):
    """Samples spread over blocks in different ways: 3 of several blocks each, 1000 of one."""
    for d in (784, 50_000):
        many = tensor(1, 1000, d, dtype=torch.float32).to(cuda)
        terms = tensor(2, 2, 1000, d, dtype=torch.float32, low=-1).to(cuda)
        rows = torch.tensor([999, 0, 31], device=cuda)
        whole = OPS.accumulate_descend(many, many, terms, None, "unit", 0.1, "l2", 0.05)
        few = OPS.accumulate_descend(many[rows], many[rows], terms[:, rows], None, "unit", 0.1, "l2", 0.05)
        assert_same_bits(few, whole[rows], d)
        assert_same_bits(
            OPS.residual(many[rows], terms[:, rows], "score", 0.1, 0, True)[2],
            OPS.residual(many, terms, "score", 0.1, 0, True)[2][rows],
            d,
        )


def calls_of_every_op(device):
    """Every op on samples of one block and of several, as functions of nothing."""
    for shape in ((16, 3072), (2, 40_000)):
        for name, arguments in op_calls(shape, torch.float32, torch.float32):
            moved = on(device, arguments)
            yield name, lambda name=name, moved=moved: getattr(OPS, name)(*moved)


def test_the_current_stream_is_used(cuda):
    """On a side stream behind a long wait: results are there only if the op waited for the stream's earlier work."""
    stream = torch.cuda.Stream(cuda)
    for name, arguments in op_calls((16, 3072), torch.float32, torch.float32):
        if name == "noise":
            continue
        moved = on(cuda, arguments)
        want = getattr(OPS, name)(*moved)
        late = moved[0].clone().fill_(torch.nan)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(moved[0])
            got = getattr(OPS, name)(late, *moved[1:])
        stream.synchronize()
        assert_same_bits(got, want, name)


def test_ops_can_be_captured_in_a_graph_and_replayed(cuda):
    for name, call in calls_of_every_op(cuda):
        want = call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call()
        for result in as_tuple(got):
            result.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(got, want, name)


def test_nothing_waits_for_the_device(cuda):
    """Every call returns while the device is still busy with what was queued before."""
    calls = list(calls_of_every_op(cuda))
    for _, call in calls:
        call()
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy.record()
    for name, call in calls:
        call()
        assert not busy.query(), name
    torch.cuda.synchronize()


def test_nothing_but_the_results_is_allocated(cuda):
    for name, call in calls_of_every_op(cuda):
        results = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = as_tuple(call())
        stays = torch.cuda.memory_allocated() - before
        assert torch.cuda.max_memory_allocated() - before == stays, name
        # Scratch memory is 1/1024 for each of two sums at most; the allocator counts whole blocks of 512 bytes.
        values = sum(r.numel() * r.element_size() for r in results)
        assert values <= stays <= values * (1 + 2 / 1024) + 1024 * (len(results) + 1), name
        del results


def test_out_of_memory_is_pytorchs_own_error(cuda):
    with pytest.raises(torch.OutOfMemoryError):
        functional.perturb(torch.empty(1, device="cuda").expand(1, 2**42), 0.1, ps.GaussianNoise(draws=2))


def test_the_second_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device only")
    for index in range(2):
        with torch.cuda.device(1 - index):
            for name, arguments in op_calls((3, 70), torch.float32, torch.float32):
                assert_bits_of_the_cpu(torch.device("cuda", index), name, arguments)
            assert torch.cuda.current_device() == 1 - index


def test_arguments_on_different_devices(cuda):
    x = torch.rand(2, 3, device=cuda)
    with pytest.raises(ValueError, match=r"prediction must be on the device of x, cuda:\d, got cpu"):
        functional.residual(x, torch.rand(4, 2, 3), 0.1, NOISE)
    with pytest.raises(RuntimeError, match="per_draw must be on the device of x"):
        OPS.accumulate_ascend(x, torch.rand(4, 2, 3), None, 0.1)
    with pytest.raises(RuntimeError, match="per_draw must be on the device of x"):
        OPS.accumulate_ascend(x.cpu(), torch.rand(4, 2, 3, device=cuda), None, 0.1)


def test_registrations(cuda):
    for name, arguments in op_calls((2, 3, 5), torch.float32, torch.float32):
        leaves = tuple(
            v.detach().to(cuda, copy=True).requires_grad_(not without_derivative(name, arguments))
            if isinstance(v, torch.Tensor)
            else v
            for v in arguments
        )
        opcheck(getattr(OPS, name).default, leaves)


def test_derivatives_are_those_of_the_cpu(cuda):
    def gradients(name, arguments):
        tensors = [v.detach().requires_grad_() for v in arguments if isinstance(v, torch.Tensor)]
        remaining = iter(tensors)
        results = as_tuple(
            getattr(OPS, name)(*(next(remaining) if isinstance(v, torch.Tensor) else v for v in arguments))
        )
        return torch.autograd.grad(sum(r.square().sum() for r in results), tensors, allow_unused=True)

    for name, arguments in op_calls((2, 3, 7), torch.float64, torch.float64):
        if without_derivative(name, arguments):
            continue
        for got, want in zip(gradients(name, on(cuda, arguments)), gradients(name, arguments), strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batch", [1, 4, None])
@pytest.mark.parametrize("direction", ["ere", "score"])
def test_purifier(cuda, direction, micro_batch):
    """Equality of runs (D1), batch invariance (D2), and agreement with the CPU up to the network's TF32."""
    x = tensor(1, 7, 1, 12, 12, dtype=torch.float32)
    settings = {"sigma": 0.2, "radius": 0.2, "steps": 3, "noise": NOISE, "direction": direction}
    purifier = ps.Purifier(conv_denoiser().to(cuda), micro_batch=micro_batch, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = purifier(x.to(cuda))
    torch.testing.assert_close(got.cpu(), ps.Purifier(conv_denoiser(), **settings)(x), rtol=0, atol=5e-3)
    assert torch.equal(purifier(x.to(cuda)), got)
    told = any("depend on the other images" in str(warning.message) for warning in caught)
    assert micro_batch != 1 or not told
    if not told:  # else cuDNN's rows depend on one another
        rows = torch.tensor([6, 2, 2], device=cuda)
        assert torch.equal(purifier(x.to(cuda)[rows]), got[rows])


def test_purified_classifier_and_its_gradient(cuda):
    x = tensor(1, 3, 1, 12, 12, dtype=torch.float32)

    def logits_and_gradient(device):
        purifier = ps.Purifier(conv_denoiser().to(device), sigma=0.2, radius=0.2, steps=2, noise=NOISE, micro_batch=1)
        model = ps.PurifiedClassifier(purifier, conv_classifier().to(device))
        images = x.to(device).requires_grad_()
        logits = model(images)
        return logits, *torch.autograd.grad(logits.square().sum(), images)

    for got, want in zip(logits_and_gradient(cuda), logits_and_gradient(torch.device("cpu")), strict=True):
        assert float((got.cpu() - want).detach().norm() / want.detach().norm()) < 0.05


def test_the_random_state_of_the_device_is_left_alone(cuda):
    before = torch.cuda.get_rng_state(cuda)
    ps.Purifier(conv_denoiser().to(cuda), sigma=0.2, radius=0.2, steps=1)(
        torch.rand(2, 1, 8, 8, device=cuda, generator=torch.Generator(cuda))
    )
    assert torch.equal(torch.cuda.get_rng_state(cuda), before)


def test_closed_form_denoisers(cuda):
    images = tensor(1, 50, 1, 6, 6, dtype=torch.float32)
    x = tensor(2, 4, 1, 6, 6, dtype=torch.float32)
    for device in (torch.device("cpu"), cuda):
        denoiser = ps.denoisers.KernelDensity(images.to(device), 0.1).to(device)
        got = ps.Purifier(denoiser, sigma=0.2, radius=0.2, steps=4, noise=NOISE)(x.to(device)).cpu()
        if device.type == "cpu":
            want = got
    torch.testing.assert_close(got, want, rtol=0, atol=5e-3)
