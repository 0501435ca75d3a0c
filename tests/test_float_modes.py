"""D4, whatever floating-point mode another library has left the thread in: flush-to-zero, or another rounding.

The mode belongs to the thread, so samples of one batch that are computed on different threads could differ.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import DTYPE_PAIRS, OPS, assert_same_bits, op_calls, special_calls, tensor
from float_modes import MODES, USUAL, float_mode, mode_of_this_thread, on_a_new_thread, probe

import pursamere  # noqa: F401  (registers the ops)

# The exponents down to that of the smallest subnormal number.
BINADES = {torch.float64: 1075, torch.float32: 150, torch.bfloat16: 134, torch.float16: 25}
# One tile, and several, of which a sample is then computed on several threads.
SHAPES = [(5, 3), (1, 70_001), (16, 40, 41)]


def of_every_size(value):
    """The same tensor with elements of every size, subnormal ones among them."""
    if not isinstance(value, torch.Tensor):
        return value
    exponents = -torch.arange(value.numel()).reshape(value.shape).remainder(BINADES[value.dtype])
    return torch.ldexp(value.double(), exponents).to(value.dtype)


def calls_and_results():
    calls = [call for dtypes in DTYPE_PAIRS for shape in SHAPES for call in op_calls(shape, *dtypes)]
    calls = [(name, tuple(map(of_every_size, arguments))) for name, arguments in calls]
    calls += special_calls(5)
    return [(name, arguments, getattr(OPS, name)(*arguments)) for name, arguments in calls]


@pytest.fixture(scope="module")
def expected():
    assert mode_of_this_thread() == USUAL
    return calls_and_results()


def results(expected):
    return [getattr(OPS, name)(*arguments) for name, arguments, _ in expected]


def assert_expected(got, expected):
    for result, (name, arguments, want) in zip(got, expected, strict=True):
        assert_same_bits(result, want, (name, *arguments[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_calling_thread_changes_no_bit(mode, threads, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        probe()  # its worker threads are started in the usual mode
        with float_mode(mode):
            got = results(expected)
    finally:
        torch.set_num_threads(before)
    assert_expected(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_worker_threads_changes_no_bit(mode, expected):
    usual = probe()

    def run():
        with float_mode(mode):
            probe()  # starts the workers
        assert not torch.equal(probe(), usual), "the workers were to be in another mode"
        return results(expected)

    assert_expected(on_a_new_thread(run), expected)


@pytest.mark.parametrize("mode", MODES)
def test_equal_samples_have_equal_bits(mode):
    sample = of_every_size(tensor(0, 1, 70_001, dtype=torch.float32))
    x, terms = sample.expand(16, -1), sample.expand(2, 16, -1)
    probe()
    with float_mode(mode):
        got = [
            *OPS.accumulate_ascend(x, terms, None, 0.1),
            *OPS.residual(x, terms.flip(-1), "noise", 0.3, 0, True)[1:],
            OPS.accumulate_descend(x, x, terms, None, "unit", 0.1, "l2", 0.05),
        ]
    for result in got:
        assert_same_bits(result, result[:1].expand_as(result).contiguous(), result.shape)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_put_back(mode):
    """After every op, and after an error where an op computes; float_mode looks once more at its end."""
    x = torch.rand(2, 3)
    calls = [*op_calls((5, 3), torch.float32, torch.float32), *op_calls((1, 70_001), torch.float32, torch.float32)]
    with float_mode(mode):
        here = mode_of_this_thread()
        for name, arguments in calls:
            getattr(OPS, name)(*arguments)
            assert mode_of_this_thread() == here, name
        with pytest.raises(RuntimeError, match="only float16, bfloat16, float32 and float64"):
            OPS.noise(x.int(), 2, 0, True)
        with pytest.raises(RuntimeError, match="does not take this pair of dtypes"):
            OPS.perturb(x, 0.1, 2, 0, True, torch.float64)
        assert mode_of_this_thread() == here


@pytest.mark.parametrize("shape", [(64, 3072), (1, 150_528)], ids=str)
@pytest.mark.parametrize("name", ["perturb", "residual", "accumulate_ascend"])
def test_threads_that_an_op_starts_inherit_the_callers_mode(name, shape):
    """As without the op: what PyTorch computes on them later is PyTorch's."""
    x, terms = torch.zeros(shape), torch.zeros(2, *shape)
    arguments = {
        "perturb": (x, 0.1, 2, 0, True),
        "residual": (x, terms, "noise", 0.1, 0, True),
        "accumulate_ascend": (x, terms, None, 0.1),
    }[name]

    def run():
        with float_mode("flush and down"):
            getattr(OPS, name)(*arguments)
            return probe()

    def alone():
        with float_mode("flush and down"):
            return probe()

    assert torch.equal(on_a_new_thread(run), on_a_new_thread(alone))


IN_A_PROCESS_OF_ITS_OWN = r"""
import ctypes, ctypes.util, platform, sys
sys.path[:0] = sys.argv[1:]
from float_modes import USUAL, mode_of_this_thread
assert mode_of_this_thread() == USUAL
import pursamere
assert mode_of_this_thread() == USUAL
from cases import OPS, special_calls
calls = list(special_calls(5))
libm = ctypes.CDLL(ctypes.util.find_library("m"))
division_overflow_and_invalid = {"x86_64": 0x04 | 0x08 | 0x01, "aarch64": 0x02 | 0x04 | 0x01}
if libm.feenableexcept(division_overflow_and_invalid[platform.machine()]) == -1:
    print("cannot trap", end=" ")
for name, arguments in calls:
    getattr(OPS, name)(*arguments)
libm.fedisableexcept(0x3d)
print("done")
"""


@pytest.mark.slow
def test_importing_changes_no_mode_and_ops_do_not_trap():
    """Compilers may divide or compare what is not needed, so a trap that is meant for others must not catch an op."""
    program = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, Path(__file__).parent]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stderr
    if "cannot trap" in done.stdout:
        pytest.skip("the processor cannot trap floating-point exceptions")
