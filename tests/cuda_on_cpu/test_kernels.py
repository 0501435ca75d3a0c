"""The CUDA kernels, run on the CPU, against the CPU's own: the same bits (D4), in any order of the threads.

If the environment variable PURSAMERE_KERNELS names a compiled library, that one is tested: so this very file runs once
more under the sanitizers, see test_sanitizers.py, and as nvcc compiles the kernels, see ../ptx/.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from build_kernels import Kernels, compile_kernels
from cases import (
    DTYPE_PAIRS,
    OPS,
    SHAPES,
    assert_same_bits,
    conversion_calls,
    draw_calls,
    expanded_calls,
    op_calls,
    special_calls,
    tensor,
)
from float_modes import MODES, float_mode

import pursamere  # noqa: F401  (registers the ops)

pytestmark = [
    pytest.mark.cuda_on_cpu,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def kernels():
    return Kernels(Path(os.environ.get("PURSAMERE_KERNELS") or compile_kernels()))


@pytest.fixture(params=["forward", "reverse"])
def machine(request, kernels):
    """Sets the number of multiprocessors, for either order of the threads."""

    def set_multiprocessors(count):
        kernels.set_machine(reverse_order=request.param == "reverse", multiprocessors=count)

    set_multiprocessors(2)
    yield set_multiprocessors
    kernels.set_machine()


def assert_bits_of_the_cpu(name, arguments):
    got = getattr(torch.ops.pursamere_cuda_on_cpu, name)(*arguments)
    assert_same_bits(got, getattr(OPS, name)(*arguments), (name, arguments[2:]))


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_op_and_option_has_the_bits_of_the_cpu(machine, shape, image, network):
    """Tails of every kind: fewer elements than a vector, a chunk and a block, and not divisible by any of them."""
    for name, arguments in op_calls(shape, image, network):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("draws", [1, 2, 3, 6, 9])
def test_numbers_of_draws_that_do_not_fill_a_round(machine, draws):
    for name, arguments in draw_calls(draws):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("draws", [5, 7, 10])
def test_draws_spread_over_blocks_that_they_do_not_fill(machine, draws):
    machine(1)
    for batch, antithetic in ((8, False), (20, draws % 2 == 0)):
        assert_bits_of_the_cpu("perturb", (tensor(1, batch, 77, dtype=torch.float32), 0.4, draws, 3, antithetic))


@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
@pytest.mark.parametrize(
    "shape",
    [
        (300, 40),  # more samples than blocks: a block has several, one after the other
        (2, 2048),  # exactly two chunks, two groups of threads
        (1, 4000),  # three groups of threads, of which a single one has a second chunk
        (3, 9 * 1024),  # several blocks for a sample, or few, by the size of the device
        (2, 70_001),  # the same, with tails and samples that are not aligned
        (40, 12_289),
    ],
    ids=str,
)
def test_every_way_to_spread_samples_over_blocks(machine, shape, multiprocessors):
    machine(multiprocessors)
    dtypes = [(torch.float32, torch.float32)]
    if shape[0] < 40:  # half images are summed again instead of kept; double sums lie differently in scratch memory
        dtypes += [(torch.float16, torch.float16), (torch.float64, torch.float64)]
    for image, network in dtypes:
        for name, arguments in op_calls(shape, image, network, draws=2):
            if name == "residual" and arguments[2] == "noise":
                continue  # as for "score"
            assert_bits_of_the_cpu(name, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("image", [torch.float32, torch.float64], ids=str)
def test_samples_with_more_chunks_than_a_block_adds_up(machine, image):
    """Over 2^20 elements the chunk sums are added up by launches of their own."""
    shape = (2, 1024 * 1024 + 7)
    x, terms = tensor(1, *shape, dtype=image), tensor(2, 1, *shape, dtype=image, low=-1)
    assert_bits_of_the_cpu("residual", (x, terms, "denoised", 0.4, 3, False))
    assert_bits_of_the_cpu("accumulate_ascend", (x, terms, None, 0.1))
    assert_bits_of_the_cpu("accumulate_descend", (x, x, terms, x, "unit", 0.1, "l2", 0.05))
    assert_bits_of_the_cpu("accumulate_ascend_perturb", (x, terms, None, 0.1, x[:1].float(), 0.4, True))


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
def test_tensors_that_do_not_start_at_16_bytes(machine, image, network):
    def shifted(value):
        if not isinstance(value, torch.Tensor):
            return value
        result = value.new_empty(value.numel() + 1)[1:].view(value.shape)
        assert result.data_ptr() % 16
        return result.copy_(value)

    for name, arguments in op_calls((2, 3, 8, 8), image, network):
        assert_bits_of_the_cpu(name, tuple(map(shifted, arguments)))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,)], ids=str)
def test_empty_batches_and_samples(machine, shape):
    for name, arguments in op_calls(shape, torch.float32, torch.float32):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (0, 2**40)], ids=str)
def test_any_number_of_draws_without_elements(machine, shape):
    for name, arguments in expanded_calls(torch.empty([min(size, 1) for size in shape]).expand(shape), 2**32 - 1):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("d", [5, 10_000])
def test_special_values_come_out_as_on_the_cpu(machine, d):
    """In samples of one block and of several."""
    for name, arguments in special_calls(d):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_and_every_boundary_of_rounding_converts_as_on_the_cpu(machine, dtype):
    for name, arguments in conversion_calls(dtype):
        assert_bits_of_the_cpu(name, arguments)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_calling_thread_changes_no_bit(machine, mode):
    """What the host computes for the kernels: constants. A device has no such modes, so the stand-in runs in IEEE's."""
    for name, arguments in [*op_calls((2, 1025), torch.float32, torch.float16), *special_calls(5)]:
        with float_mode(mode):
            got = getattr(torch.ops.pursamere_cuda_on_cpu, name)(*arguments)
        assert_same_bits(got, getattr(OPS, name)(*arguments), (name, arguments[2:]))


def test_one_launch_for_each_op_unless_blocks_share_a_sample(kernels):
    def launches(name, *arguments):
        before = kernels.launch_count()
        getattr(torch.ops.pursamere_cuda_on_cpu, name)(*arguments)
        return kernels.launch_count() - before

    kernels.set_machine(multiprocessors=2)
    for d, sums in ((64, 0), (8192, 0), (10_000, 1)):
        x, terms = tensor(1, 3, d, dtype=torch.float32), tensor(2, 2, 3, d, dtype=torch.float32)
        assert launches("perturb", x, 0.1, 4, 0, True) == 1
        assert launches("noise", x, 4, 0, True) == 1
        assert launches("residual", x, terms, "denoised", 0.1, 0, True) == 1 + sums
        assert launches("sum_draws", terms, torch.float32) == 1
        without_ere = (1.0, 1.0, 0.0, 1.0, True, True, False)
        assert launches("residual", x, terms, "denoised", 0.1, 0, True, *without_ere) == 1
        assert launches("residual_backward", terms, x, 1.0, 1.0, 1.0, 1.0) == 1
        assert launches("accumulate_ascend", x, terms, None, 0.1) == 1 + sums
        assert launches("accumulate_descend", x, x, terms, None, "sign", 0.1, "linf", 0.1) == 1
        assert launches("accumulate_descend", x, x, terms, None, "unit", 0.1, "linf", 0.1) == 1 + sums
        assert launches("accumulate_descend", x, x, terms, None, "unit", 0.1, "l2", 0.1) == 1 + 2 * sums
        banked = (x[:2], 0.1, True)
        assert launches("accumulate_ascend_perturb", x, terms, None, 0.1, *banked) == 1 + sums
        for step, ball, passes in (("sign", "linf", 1), ("unit", "l2", 1 + 2 * sums)):
            assert launches("accumulate_descend_perturb", x, x, terms, None, step, 0.1, ball, 0.1, *banked) == passes


def test_scratch_memory_lies_behind_a_result_and_only_where_blocks_share_a_sample(kernels):
    kernels.set_machine(multiprocessors=2)
    for d, extra in ((8192, 0), (10_000, 10), (1024 * 1024 + 7, 1025 + 2)):
        x, terms = torch.zeros(1, d), torch.zeros(2, 1, d)
        point, norm = torch.ops.pursamere_cuda_on_cpu.accumulate_ascend(x, terms, None, 0.1)
        begin = -(-d // 4) * 4 if extra else d
        assert point.untyped_storage().nbytes() == 4 * (begin + extra)
        assert norm.untyped_storage().nbytes() == 4


LAUNCH_ERRORS = {
    209: "cudaErrorNoKernelImageForDevice, no kernel image is available for execution on the device; this build has "
    r"kernels for the architectures (none|[\w, -]+)$",
    35: "cudaErrorInsufficientDriver, CUDA driver version is insufficient for CUDA runtime version; this build "
    "contains the runtime of CUDA 13, the driver is of CUDA 12: update the driver, or build with the nvcc of a CUDA "
    "that it supports",
    101: r"cudaErrorInvalidDevice, invalid device ordinal \(the kernel was not launched, or earlier work on the device",
}


@pytest.mark.parametrize("error", LAUNCH_ERRORS)
def test_a_launch_that_fails_says_which_on_what_and_why(kernels, error):
    kernels.set_launch_error(error)
    try:
        message = rf"pursamere::residual on 4 draws of \[2, 15\]: {LAUNCH_ERRORS[error]}"
        with pytest.raises(RuntimeError, match=message):
            torch.ops.pursamere_cuda_on_cpu.residual(torch.rand(2, 3, 5), torch.rand(4, 2, 3, 5), "score", 0.1, 0, True)
    finally:
        kernels.set_launch_error(0)
