"""D4 in what nvcc makes: only floating-point arithmetic that is rounded to nearest, as IEEE 754 says (no ``-fmad``)."""

import re

import pytest
from build_ptx import ARCHITECTURES, compile_with_nvcc, kernels_for
from ptx_syntax import Instruction

# These do not round.
EXACT = {"ld", "st", "mov", "selp", "setp", "neg", "abs", "copysign"}
WIDENING = {"cvt.f64.f32", "cvt.f32.f16", "cvt.f32.bf16"}


def is_exact(opcode):
    """Whether an instruction on floats is rounded to nearest, or not at all.

    nvcc writes sums and products without ``.rn`` where the assembler may contract them to an fma.
    """
    name, *modifiers = opcode.split(".")
    if {"approx", "ftz", "full", "sat"} & set(modifiers):
        return False
    return name in EXACT or opcode in WIDENING or "rn" in modifiers


def on_floats(opcode):
    return re.search(r"\.(f16|bf16|f16x2|bf16x2|tf32|f32|f64)(\.|$)", opcode) is not None


@pytest.mark.parametrize(
    ("opcode", "exact"),
    [
        ("add.rn.f32", True),
        ("fma.rn.f64", True),
        ("setp.leu.f32", True),
        ("cvt.rn.bf16x2.f32", True),
        ("add.f32", False),
        ("mul.f64", False),
        ("fma.rz.f32", False),
        ("fma.rn.ftz.f32", False),
        ("div.full.f32", False),
        ("sqrt.approx.f32", False),
        ("ex2.approx.ftz.f32", False),
        ("cvt.f32.f64", False),
        ("cvt.rz.f16.f32", False),
        ("setp.lt.ftz.f32", False),
    ],
)
def test_what_counts_as_exact(opcode, exact):
    assert on_floats(opcode)
    assert is_exact(opcode) == exact


@pytest.mark.slow
@pytest.mark.cuda_on_cpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_arithmetic_is_rounded_to_nearest(architecture):
    kernels = kernels_for(architecture)
    assert len(kernels) > len(list(compile_with_nvcc().glob(f"*.{architecture}.ptx"))) > 0
    opcodes = {item.opcode for kernel in kernels for item in kernel.body if isinstance(item, Instruction)}
    arithmetic = {opcode for opcode in opcodes if on_floats(opcode)}
    assert len(arithmetic) > 10  # so they are found
    assert not {opcode for opcode in arithmetic if not is_exact(opcode)}
