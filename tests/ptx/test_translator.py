"""The translator of PTX itself: every operation against a reference, what threads do together, and clear errors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from build_ptx import translate_to_library
from nvcc import require_nvcc
from ptx_operations import OPERATIONS
from ptx_references import REFERENCES
from ptx_syntax import parse_kernels
from ptx_translator import translate

pytestmark = [
    pytest.mark.cuda_on_cpu,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

N = 4096
BLOCK = 256
SPECIAL_FLOATS = [0.0, 1.0, np.inf, np.nan, 5e-324, 2.0**-149, 2.0**-126, 1e-40, 2.0**-1022, 1 + 2.0**-23, 0.1, 3.0]
SPECIAL_FLOATS += [65504.0, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-14, 1e38, 3.4028235e38, 1e308]
SPECIAL_INTEGERS = [0, 1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, -1, -2, 1 << 15, 1 << 31]
SPECIAL_INTEGERS += [(1 << n) - 1 for n in (15, 31, 63)] + [1 << 63]


def storage(kind):
    """The numpy type of a value in memory; one of 8 bits has a register of 16, a predicate an integer."""
    if kind == "pred":
        return np.dtype(np.uint32)
    size = max(int(kind.lstrip("bfsu")), 16) // 8
    return np.dtype(f"{'f' if kind[0] == 'f' else 'u'}{size}")


def register(kind, number):
    return "%p5" if kind == "pred" else f"{ {2: '%rs', 4: '%r', 8: '%rd'}[storage(kind).itemsize] }1{number}"


def kernel(name, body, parameters, *, declarations=""):
    """A kernel of pointers, which are in %rd1, %rd2, ...; the number of the thread in the grid is in %r1 and %rd0."""
    declared = ", ".join(f".param .u64 {name}_param_{i}" for i in range(parameters))
    loads = " ".join(f"ld.param.u64 %rd{i + 1}, [{name}_param_{i}];" for i in range(parameters))
    return f"""
.visible .entry {name}({declared})
.maxntid {BLOCK}, 1, 1
{{
{declarations}
.reg .pred %p<8>; .reg .b16 %rs<20>; .reg .b32 %r<20>; .reg .b64 %rd<30>;
{loads}
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r1, %r2, %r3, %r1;
cvt.u64.u32 %rd0, %r1;
{body}
ret;
}}"""


def operation_kernel(opcode):
    """Every thread has the instruction's operands in arrays, and its result in one."""
    kinds, result, _ = REFERENCES[opcode]
    lines = []
    for i, kind in enumerate(kinds):
        size = storage(kind).itemsize
        target = register(kind, i) if kind != "pred" else f"%r1{i}"
        lines.append(f"mad.lo.s64 %rd20, %rd0, {size}, %rd{i + 1}; ld.global.b{8 * size} {target}, [%rd20];")
        if kind == "pred":
            lines.append(f"setp.ne.b32 %p{i}, {target}, 0;")
    sources = [f"%p{i}" if kind == "pred" else register(kind, i) for i, kind in enumerate(kinds)]
    lines.append(f"{opcode} {', '.join([register(result, 4), *sources])};")
    if result == "pred":
        lines.append("selp.b32 %r14, 1, 0, %p5;")
    target, size = "%r14" if result == "pred" else register(result, 4), storage(result).itemsize
    lines.append(f"mad.lo.s64 %rd20, %rd0, {size}, %rd{len(kinds) + 1}; st.global.b{8 * size} [%rd20], {target};")
    return kernel(f"k_{opcode.replace('.', '_')}", "\n".join(lines), len(kinds) + 1)


TOGETHER = [
    # Four values of the thread that mirrors this one in its block, through shared memory; what nobody wrote is NaN.
    kernel(
        "mirror",
        """
        shl.b32 %r4, %r1, 4; mov.u32 %r5, %tid.x; shl.b32 %r6, %r5, 4; sub.s32 %r7, 4080, %r6;
        mov.u32 %r8, memory; add.s32 %r6, %r8, %r6; add.s32 %r7, %r8, %r7;
        cvt.u64.u32 %rd10, %r4; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd2, %rd10;
        ld.global.cs.v4.u32 {%r10, %r11, %r12, %r13}, [%rd11];
        ld.shared.u32 %r14, [memory+4096]; setp.ne.u32 %p1, %r14, -1; @%p1 bra $L__wrong;
        st.shared.v4.u32 [%r6], {%r10, %r11, %r12, %r13};
        bar.sync 0;
        { .reg .b64 %tmp; cvt.u64.u32 %tmp, %r7; cvta.shared.u64 %rd13, %tmp; }
        ld.v2.u32 {%r10, %r11}, [%rd13]; ld.shared.v2.u32 {%r12, %r13}, [%r7+8];
        st.global.v4.u32 [%rd12], {%r10, %r11, %r12, %r13};
        ret;
        $L__wrong:
        st.global.u32 [%rd12], -7;
        bar.sync 0;""",
        2,
        declarations=".shared .align 16 .b8 memory[4100];",
    ),
    # The value of the lane whose number differs in one bit, and the lanes' sum.
    kernel(
        "butterfly",
        """
        shl.b64 %rd10, %rd0, 2; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd2, %rd10;
        ld.global.u32 %r10, [%rd11];
        shfl.sync.bfly.b32 %r11|%p1, %r10, 4, 31, -1; add.s32 %r10, %r10, %r11;
        bar.warp.sync -1;
        @!%p1 add.s32 %r10, %r10, 1000;
        st.global.u32 [%rd12], %r10;""",
        2,
    ),
    # A value in halves, put together the other way round; a scope with a register of its own; guards and a loop; a
    # parameter by its address.
    kernel(
        "control",
        """
        shl.b64 %rd10, %rd0, 2; add.s64 %rd11, %rd1, %rd10;
        mov.b64 %rd13, control_param_1; add.s64 %rd13, %rd13, 8;
        ld.param.u64 %rd12, [%rd13+-8]; add.s64 %rd12, %rd12, %rd10;
        ld.global.u32 %r10, [%rd11];
        mov.b32 {%rs1, %rs2}, %r10;
        { .reg .b16 tmp; mov.b32 {tmp, %rs3}, %r10; }
        setp.eq.s16 %p1, %rs2, %rs3; @!%p1 bra $L__done;
        mov.b32 %r10, {%rs3, %rs1};
        and.b32 %r11, %r1, 3;
        $L__loop:
        setp.eq.s32 %p2, %r11, 0; @%p2 bra $L__done;
        add.s32 %r10, %r10, -1; add.s32 %r11, %r11, -1;
        bra.uni $L__loop;
        $L__done:
        st.global.u32 [%rd12], %r10;""",
        2,
    ),
    kernel("half_a_warp", "shfl.sync.bfly.b32 %r11|%p1, %r1, 4, 15, -1;", 1),
    kernel("misaligned", "ld.global.u32 %r4, [%rd1+2];", 1),
    kernel("outside", "ld.shared.u32 %r4, [memory+16];", 1, declarations=".shared .align 16 .b8 memory[16];"),
    kernel("undefined", "mov.u32 %r4, 0; div.u32 %r4, %r1, %r4;", 1),
    kernel("racing", "setp.lt.u32 %p1, %r1, 8; @%p1 bar.sync 0;", 1),
]
OPCODES = [opcode for opcode in REFERENCES if opcode in OPERATIONS]
PTX = "\n".join([".version 8.6\n.target sm_90\n.address_size 64", *map(operation_kernel, OPCODES), *TOGETHER])


@pytest.fixture(scope="module")
def run():
    """Run a kernel by its name on arrays, with a thread for each element of the first, and raise what it reports."""
    library = ctypes.CDLL(str(translate_to_library("ptx-tests", parse_kernels(PTX))))
    library.kernel_name.restype = library.run_kernel.restype = ctypes.c_char_p
    numbers = {library.kernel_name(i).decode(): i for i in range(library.kernel_count())}

    def run(name, *arrays, threads=None, block=BLOCK, reverse=False):
        threads = threads or len(arrays[0])
        pointers = [ctypes.c_uint64(array.ctypes.data) for array in arrays]
        parameters = (ctypes.c_void_p * len(arrays))(*(ctypes.addressof(pointer) for pointer in pointers))
        library.set_machine(reverse, 2)
        error = library.run_kernel(numbers[name], threads // block, block, parameters)
        if error:
            raise RuntimeError(error.decode())

    return run


def random_values(kind, rng):
    """The bits of many special values and as many random ones."""
    dtype = storage(kind)
    if kind == "pred":
        return rng.integers(0, 2, N, dtype=np.uint32)
    if kind[0] == "f":
        with np.errstate(over="ignore"):
            special = np.array(SPECIAL_FLOATS).astype(dtype)
        values = rng.choice(np.concatenate([special, -special]), N)
        values[N // 4 : N // 2] = rng.standard_normal(N // 4)
        values[3 * N // 4 :] = np.frombuffer(rng.bytes(N // 4 * dtype.itemsize), dtype)
        return values
    special = np.array([x & (1 << 8 * dtype.itemsize) - 1 for x in SPECIAL_INTEGERS], dtype)
    return np.where(rng.random(N) < 0.6, rng.choice(special, N), np.frombuffer(rng.bytes(N * dtype.itemsize), dtype))


def python_values(array, kind):
    """An array's values as the references take them."""
    if kind[0] == "f":
        return list(array)
    size = 1 if kind == "pred" else int(kind[1:])
    values = [int(x) & (1 << size) - 1 for x in array]
    return [x - (1 << size) if kind[0] == "s" and x >> size - 1 else x for x in values]


def test_every_operation_has_a_reference():
    addresses = {"cvta.to.global.u64", "cvta.shared.u64", "cvta.to.shared.u64"}
    assert set(OPERATIONS) - addresses == set(REFERENCES)


@pytest.mark.parametrize("opcode", OPCODES)
def test_the_operation_gives_what_its_reference_does(run, opcode):
    kinds, result, reference = REFERENCES[opcode]
    rng = np.random.default_rng(1)
    arrays = [random_values(kind, rng) for kind in kinds]
    if opcode.startswith("fma"):  # in a part of the cases all that is left is what the product is rounded by
        with np.errstate(all="ignore"):
            arrays[2][: N // 2] = -(arrays[0] * arrays[1])[: N // 2]
    if opcode.startswith(("div.u", "div.s", "rem")):
        arrays[1][arrays[1] == 0] = 1
        if kinds[0][0] == "s":
            arrays[0][arrays[1] == np.iinfo(arrays[1].dtype).max] = 5  # -1: the least integer has no quotient
    got = np.empty(N, storage(result))
    run(f"k_{opcode.replace('.', '_')}", *arrays, got)
    with np.errstate(all="ignore"):
        columns = [python_values(array, kind) for array, kind in zip(arrays, kinds, strict=True)]
        want = [reference(*values) for values in zip(*columns, strict=True)]
    if result[0] == "f":
        want = np.array(want, storage(result))
        bits = storage(result).str.replace("f", "u")
        same = (got.view(bits) == want.view(bits)) | (np.isnan(got) & np.isnan(want))
    else:
        size = 1 if result == "pred" else 8 * storage(result).itemsize
        same = got == np.array([int(x) & (1 << size) - 1 for x in want], storage(result))
    wrong = np.flatnonzero(~same)
    assert len(wrong) == 0, [(*(column[i] for column in columns), got[i], want[i]) for i in wrong[:3]]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_way_to_round_to_16_bits(run, kind):
    """Every value of 16 bits, what lies half way to the next, and the floats on both sides of that."""
    import torch

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).double()
    middles = ((values[1:] + values[:-1]) / 2).float()
    middles = torch.cat([values.float(), middles, middles[-1:]])
    x = torch.cat([middles, middles.nextafter(torch.tensor(1e38)), middles.nextafter(torch.tensor(-1e38))]).numpy()
    got = np.empty(len(x), np.uint16)
    run(f"k_cvt_rn_{kind}_f32", x, got)
    got, want = torch.from_numpy(got.view(np.int16)).view(dtype), torch.from_numpy(x).to(dtype)
    same = (got.view(torch.int16) == want.view(torch.int16)) | (got.isnan() & want.isnan())
    assert same.all(), (x[~same][:3], got[~same][:3], want[~same][:3])


@pytest.mark.parametrize("reverse", [False, True])
def test_threads_meet_in_shared_memory_and_in_warps(run, reverse):
    x = np.arange(4 * 4 * BLOCK, dtype=np.uint32)
    got = np.zeros_like(x)
    run("mirror", x, got, threads=4 * BLOCK, reverse=reverse)
    np.testing.assert_array_equal(got.reshape(4, BLOCK, 4), x.reshape(4, BLOCK, 4)[:, ::-1])
    got = np.zeros(2 * BLOCK, np.uint32)
    run("butterfly", x[: 2 * BLOCK] ** 2, got, reverse=reverse)
    lanes = np.arange(2 * BLOCK)
    np.testing.assert_array_equal(got, lanes**2 + (lanes ^ 4) ** 2)


def test_branches_guards_scopes_and_halves(run):
    x = np.random.default_rng(0).integers(0, 2**32, BLOCK, dtype=np.uint32)
    got = np.zeros_like(x)
    run("control", x, got)
    np.testing.assert_array_equal(got, (x << 16 | x >> 16) - np.arange(BLOCK, dtype=np.uint32) % 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half_a_warp", "ptx: a shuffle within a part of a warp"),
        ("misaligned", "ptx: a misaligned address"),
        ("outside", "ptx: outside of shared memory"),
        ("undefined", "ptx: an integer division whose result is not defined"),
        ("racing", "cuda_on_cpu: deadlock in block .* of 256 threads: 8 wait at __syncthreads"),
    ],
)
def test_what_a_device_would_not_survive_is_an_error(run, name, message):
    with pytest.raises(RuntimeError, match=message):
        run(name, np.zeros(BLOCK, np.uint32))


def test_a_block_of_more_threads_than_the_kernel_allows(run):
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        run("control", np.zeros(512, np.uint32), np.zeros(512, np.uint32), block=512)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown opcode: frobnicate.b32 %r1, %r2, in k"),
        ("add.f32 %r1, %r2, %r3;", "unknown opcode: add.f32"),
        ("add.rn.ftz.f32 %r1, %r2, %r3;", "unknown opcode: add.rn.ftz.f32"),
        ("add.rz.f32 %r1, %r2, %r3;", "unknown opcode: add.rz.f32"),
        ("sqrt.approx.f32 %r1, %r2;", "unknown opcode: sqrt.approx.f32"),
        ("add.s32 %r1, %r2;", "2 operands expected: add.s32"),
        ("add.rn.f32 %r1, %r2, 1;", "an integer in place of a float"),
        ("bar.sync 1;", "unknown opcode: bar.sync"),
        ("ld.global.v2.f32 %r1, [%rd1];", "2 registers expected"),
        ("ld.weak.global.f32 %r1, [%rd1];", "unknown modifier .weak"),
        ("ld.param.u64 %rd1, [k_param_0+4];", "outside of the parameter"),
        ("mov.u32 %r1, %laneid;", "unknown operand %laneid"),
        (".local .align 4 .b8 depot[8];", "unknown declaration: .local"),
    ],
)
def test_what_the_translator_does_not_know_is_named(statement, message):
    with pytest.raises(ValueError, match=message):
        translate(*parse_kernels(kernel("k", statement, 1)), "function")


def test_functions_and_global_variables_are_refused():
    with pytest.raises(ValueError, match=r"not expected between kernels: \.global"):
        parse_kernels(".version 8.0\n.global .align 4 .b8 table[64];\n" + kernel("k", "", 1))


def test_the_assembler_accepts_these_kernels(tmp_path):
    (tmp_path / "tests.ptx").write_text(PTX)
    ptxas = Path(require_nvcc()).resolve().parent / "ptxas"
    done = subprocess.run(
        [ptxas, "-arch=sm_90", tmp_path / "tests.ptx", "-o", tmp_path / "tests.cubin"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:3000]
