"""The stand-in for CUDA itself: it runs right kernels rightly and reports what is wrong with wrong ones."""

import shutil
import subprocess
from pathlib import Path

import pytest
from build_kernels import cached

HERE = Path(__file__).parent
PROGRAM = HERE / "shim_program.cu"
SETTINGS = """
#include <cuda_runtime.h>
void set_reverse_order(bool reverse) { cuda_on_cpu::reverse_order = reverse; }
"""
# object-size finds some of the writes that AddressSanitizer is to find here, and would come first.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=object-size", "-fno-sanitize-recover=all"]
FLAGS = {"plain": ["-O1"], "sanitized": ["-O1", "-g", *SANITIZERS]}
DEADLOCK = "cuda_on_cpu: deadlock in block ({}) of {} threads: {} wait at __syncthreads, "
DEADLOCK += "{} at __syncwarp, {} at a warp shuffle, {} have exited"

pytestmark = [
    pytest.mark.cuda_on_cpu,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def _start(kind):
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wshadow", "-Werror", *FLAGS[kind], "-I", HERE / "shim"]

    def build(folder):
        settings = folder / "settings.cpp"
        settings.write_text(SETTINGS)
        subprocess.run([*command, "-x", "c++", PROGRAM, settings, "-o", folder / "program"], check=True)

    sources = [PROGRAM, *sorted((HERE / "shim").glob("*.h"))]
    program = cached(f"{kind}-shim", sources, [command, SETTINGS], build) / "program"

    def start(mode, order="forward"):
        return subprocess.run([program, mode, order], capture_output=True, text=True, timeout=120)

    return start


@pytest.fixture(scope="module")
def plain():
    return _start("plain")


@pytest.fixture(scope="module")
def sanitized():
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(library.stdout.strip()).is_absolute():
        pytest.skip("needs g++'s AddressSanitizer")
    return _start("sanitized")


@pytest.fixture(params=["plain", "sanitized"])
def lines(request):
    """The lines that a mode of the program prints, in either build; the sanitizers must have nothing to say."""

    def lines_of(*arguments):
        result = request.getfixturevalue(request.param)(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return lines_of


def _right_results():
    elements = [i % 1000 for i in range(6 * 256)]
    sums = [sum(elements[256 * b : 256 * (b + 1)]) for b in range(6)]
    swapped = [t ^ 1 for t in range(32)]
    return [" ".join(map(str, values)) + " " for values in (sums, swapped)]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_right_kernels_give_the_right_sums_in_either_order(lines, order):
    assert lines("right", order) == _right_results()


def test_a_missing_barrier_shows_in_the_order_of_the_threads(plain):
    forward, reverse = (plain("racy", order).stdout.splitlines() for order in ("forward", "reverse"))
    assert len(forward) == len(reverse) == 3
    assert forward[0] != reverse[0]  # no barrier between the warps of a block
    assert forward[1] != reverse[1]  # nor between the lanes of a warp
    assert (forward[2], reverse[2]) == ("123", "000")  # and never one between blocks


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_every_lane_receives_its_partners_value(lines, order):
    types = ["float", "double", "int", "unsigned", "unsigned long long"]
    assert lines("exchange", order) == [f"{name}: 0 wrong" for name in types]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_every_thread_of_a_three_dimensional_grid_runs_once(lines, order):
    assert lines("visits", order) == ["visits: 0 wrong"]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_errors_are_reported_and_later_launches_work(lines, order):
    # The counts are those of the whole block: where a lane is missing, the other warp is among those that have exited.
    errors = [
        f"part of the block: {DEADLOCK.format('2, 0, 0', 256, 156, 0, 0, 100)}",
        f"two barriers: {DEADLOCK.format('0, 0, 0', 32, 16, 16, 0, 0)}",
        f"missing lane: {DEADLOCK.format('0, 0, 0', 64, 0, 0, 31, 33)}",
        f"partial warp: {DEADLOCK.format('0, 0, 0', 48, 0, 0, 16, 32)}",
        "partial mask: cuda_on_cpu: a warp operation with a mask that is not full",
        "no such lane: cuda_on_cpu: a shuffle with no such lane",
        "nested: cuda_on_cpu: a launch while another one runs",
        "throwing: planted",
    ]
    expected = [line for error in errors for line in (error, *_right_results())]
    expected.append("held: 1")  # what the threads of the throwing kernel held was released
    expected.append("outside: cuda_on_cpu: a barrier or a shuffle outside of a kernel")
    assert lines("errors", order) == expected


def test_invalid_configurations_run_nothing(lines):
    invalid = ["cudaErrorInvalidConfiguration 0"]
    expected = ["cudaSuccess 2048 1"]
    expected += [f"{line} 1" for line in 10 * invalid]
    expected += ["cudaSuccess 64 2"]
    expected += [f"{line} 2" for line in invalid]
    assert lines("configurations") == expected


def test_the_number_of_multiprocessors_can_be_set(lines):
    assert lines("device") == ["0 2 7 no error invalid device ordinal"]


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("mode", "report"),
    [
        ("heap", "heap-buffer-overflow"),
        ("stack", "stack-buffer-overflow"),
        ("shared", "global-buffer-overflow"),
        ("alignment", "store to misaligned address"),
    ],
)
def test_the_sanitizers_see_what_a_kernel_does_wrong(sanitized, mode, report, order):
    result = sanitized(mode, order)
    assert result.returncode != 0
    assert report in result.stderr


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_the_sanitizers_say_nothing_of_a_right_kernel(sanitized, order):
    result = sanitized("inside", order)
    assert result.returncode == 0
    assert "ERROR" not in result.stderr
    assert "runtime error" not in result.stderr
